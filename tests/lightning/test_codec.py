"""Tensors in states and samples: real training goes on from disk as if it had never stopped."""

import numpy as np
import pytest
import torch
from torch import nn

from pybrush.content import encode
from pybrush.errors import ContentError, CorruptRecordError, UnsupportedError
from pybrush.record import states, trees
from pybrush_lightning.codec import _DTYPES, TorchCodec


def through_disk(tree, folder):
    states.save(folder, tree)
    return states.load(folder)


def bits(tensor):
    plain = tensor.detach().resolve_conj().resolve_neg()
    elements = [bytes(torch.stack([element]).view(torch.uint8).tolist()) for element in plain.reshape(-1)]
    return plain.dtype, plain.shape, elements


def same_tree(left, right):
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return bits(left) == bits(right)
    if isinstance(left, dict):
        return same_tree(list(left.items()), list(right.items()))
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same_tree, left, right))
    return left == right


class Tied(nn.Module):
    """A small language model: the head is the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.norm(self.embedding(tokens)))


OPTIMIZERS = {
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AMSGrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "Adam with a rate in a tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), capturable=False),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}

SCHEDULERS = {
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
    "multi-step, which holds a Counter": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 4, 4, 6]),
    "sequential": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, total_iters=2),
            torch.optim.lr_scheduler.CosineAnnealingLR(o, 6),
        ],
        milestones=[2],
    ),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
}


class Run:
    """A plain training run that can be stopped after any epoch."""

    def __init__(self, optimizer, scheduler, dtype=torch.float32):
        torch.manual_seed(0)
        self.model = Tied().to(dtype)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)

    def train(self, epochs):
        for epoch in epochs:
            tokens = torch.randint(7, (20,), generator=torch.Generator().manual_seed(epoch))
            loss = self.optimizer.step(lambda tokens=tokens: self.backward(tokens))
            plateau = isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            self.scheduler.step(*([loss.item()] if plateau else []))
        return self

    def backward(self, tokens):
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(tokens).float(), (tokens + 1) % 7)
        loss.backward()
        return loss

    def read(self):
        parts = (self.model, self.optimizer, self.scheduler)
        return {type(part).__name__: part.state_dict() for part in parts}

    def write(self, state):
        for part in (self.model, self.optimizer, self.scheduler):
            part.load_state_dict(state[type(part).__name__])
        return self


CASES = [(optimizer, "plateau") for optimizer in OPTIMIZERS]
CASES += [("SGD with momentum", scheduler) for scheduler in SCHEDULERS if scheduler != "plateau"]


@pytest.mark.parametrize(("optimizer", "scheduler"), CASES)
def test_training_goes_on_from_disk_with_the_bits_of_an_uninterrupted_run(optimizer, scheduler, tmp_path):
    whole = Run(optimizer, scheduler).train(range(6)).read()
    first = Run(optimizer, scheduler).train(range(3)).read()
    loaded = through_disk(first, tmp_path)
    assert same_tree(loaded, first)
    second = Run(optimizer, scheduler).train([9]).write(loaded).train(range(3, 6)).read()
    assert same_tree(second, whole)
    assert states.init_digest(second) == states.init_digest(whole)


def test_a_run_in_bfloat16_goes_on_from_disk(tmp_path):
    whole = Run("Adam", "plateau", torch.bfloat16).train(range(6)).read()
    first = Run("Adam", "plateau", torch.bfloat16).train(range(3)).read()
    loaded = through_disk(first, tmp_path)
    assert loaded["Tied"]["norm.weight"].dtype is torch.bfloat16
    second = Run("Adam", "plateau", torch.bfloat16).write(loaded).train(range(3, 6))
    assert same_tree(second.read(), whole)


def test_tied_weights_are_stored_once_and_are_one_tensor_again(tmp_path):
    tree = dict(Tied().state_dict())
    loaded = through_disk(tree, tmp_path)
    assert loaded["embedding.weight"] is loaded["head.weight"]
    assert len(states.read(tmp_path)[1]) == len(tree) - 1


VALUES = torch.tensor([[0.0, 1.5, -2.0], [3.0, float("inf"), 0.25]])


@pytest.mark.parametrize("dtype", _DTYPES.values(), ids=str)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_every_element_type_comes_back_bit_for_bit(dtype):
    raw = torch.arange(6 * dtype.itemsize, dtype=torch.uint8)
    tensor = (raw % 2 if dtype is torch.bool else raw).view(dtype).reshape(2, 3)
    tree = [tensor, tensor.T, tensor[1, 2], tensor[:0], tensor[:, ::2], tensor[:, 1:2][:1], tensor[0, ::3]]
    loaded = trees.unpack(*trees.pack(tree))
    assert same_tree(loaded, tree)


def test_lazy_conjugates_and_negatives_keep_their_values_and_are_no_ties():
    number = torch.tensor([1 + 2j, 3 - 4j])
    tree = [number, number.conj(), number.conj()[:1].imag, number[:1].imag]
    assert tree[1].is_conj() and tree[2].is_neg() and tree[2].is_contiguous()
    loaded = trees.unpack(*trees.pack(tree))
    assert same_tree(loaded, tree)
    assert len({id(tensor) for tensor in loaded}) == 4
    assert encode(tree[1]) == encode(np.array([1 - 2j, 3 + 4j], "c8"))


def test_views_of_one_memory_that_differ_are_stored_apart():
    base = torch.arange(6.0)
    tree = [base, base[:3], base[::2], base[1:4], base.view(2, 3), base.view(torch.int32), base.clone()]
    loaded = trees.unpack(*trees.pack(tree))
    assert same_tree(loaded, tree)
    assert len({tensor.data_ptr() for tensor in loaded}) == len(tree)


def test_memory_order_survives_for_convolutions_in_channels_last():
    images = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    loaded = trees.unpack(*trees.pack(images))
    assert loaded.stride() == images.stride()
    assert torch.equal(loaded, images)


def test_parameters_come_back_as_plain_tensors_without_gradient():
    loaded = trees.unpack(*trees.pack(nn.Parameter(VALUES, requires_grad=True)))
    assert type(loaded) is torch.Tensor
    assert not loaded.requires_grad


def test_empty_tensors_are_never_tied():
    loaded = trees.unpack(*trees.pack([torch.zeros(0), torch.zeros(0)]))
    assert loaded[0] is not loaded[1]


def test_an_array_and_a_tensor_over_one_memory_stay_what_they_are():
    array = np.arange(3.0)
    loaded = trees.unpack(*trees.pack([array, torch.from_numpy(array)]))
    assert [type(value) for value in loaded] == [np.ndarray, torch.Tensor]


def test_what_is_packed_shares_no_memory_with_what_went_in_or_comes_out():
    tensor = torch.zeros(3)
    packed = trees.pack(tensor)
    tensor.add_(1)
    trees.unpack(*packed).add_(1)
    assert trees.unpack(*packed).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "value",
    [
        torch.Size([2, 3]),
        torch.Size([]),
        torch.float32,
        torch.bfloat16,
        torch.device("cpu"),
        torch.device("cuda:1"),
    ],
)
def test_sizes_types_and_devices_come_back(value):
    loaded = trees.unpack(*trees.pack({value: [value]}))
    assert loaded == {value: [value]}
    assert type(loaded[value][0]) is type(value)


class Wrapping(torch.Tensor):
    """A tensor whose own memory is empty, as those of torchao and of distributed training."""

    @classmethod
    def __torch_dispatch__(cls, function, classes, args=(), kwargs=None):
        raise NotImplementedError


REFUSED = {
    "sparse": lambda: torch.eye(2).to_sparse(),
    "on no device": lambda: torch.empty(2, device="meta"),
    "of half a byte": lambda: torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(1)], layout=torch.strided),
    "nested and jagged": lambda: torch.nested.nested_tensor([torch.ones(1)], layout=torch.jagged),
    "wrapping another": lambda: torch.Tensor._make_wrapper_subclass(Wrapping, (2,), dtype=torch.float32),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())
def test_a_tensor_without_plain_bytes_is_refused(make):
    with pytest.raises(UnsupportedError, match=r"state\['x'\].*torch\."):
        trees.pack({"x": make()})
    with pytest.raises(ContentError, match="content_of="):
        encode({"x": make()})


class Labelled(torch.Tensor):
    """A tensor that carries more than its elements."""


def test_a_class_of_the_users_own_is_content_but_no_state():
    labelled = torch.ones(2).as_subclass(Labelled)
    assert encode(labelled) == encode(torch.ones(2))
    with pytest.raises(UnsupportedError, match="Labelled"):
        trees.pack(labelled)


# Content

NUMPY_TYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
NUMPY_TYPES += ["float16", "float32", "float64", "complex64", "complex128"]


@pytest.mark.parametrize("name", NUMPY_TYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (4,), (2, 3, 2)])
def test_a_tensor_and_the_array_of_its_values_are_one_content(name, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(name)
    tensor = torch.from_numpy(np.asarray(array))
    assert encode(tensor) == encode(array)
    assert encode(tensor.T if tensor.ndim == 2 else tensor) == encode(array.T if array.ndim == 2 else array)
    assert encode((tensor, {"y": tensor})) == encode((array, {"y": array}))


def test_a_view_a_parameter_and_a_copy_are_one_content():
    wide = torch.arange(12.0).reshape(3, 4)
    narrow = wide[:, 1::2]
    assert encode(narrow) == encode(nn.Parameter(narrow)) == encode(narrow.clone()) == encode(narrow.numpy())


def test_bfloat16_content_is_its_own_type_and_two_bytes_an_element():
    item = bytes.fromhex(
        "61 3100000000000000"
        "73 0800000000000000 62666c6f61743136"
        "74 0a00000000000000 69 0100000000000000 32"
        "79 0400000000000000 803f 00c0"
    )
    assert encode(torch.tensor([1.0, -2.0], dtype=torch.bfloat16)) == item
    assert encode(torch.tensor([1.0, -2.0], dtype=torch.float16)) != item


def test_a_type_that_numpy_lacks_is_no_content():
    with pytest.raises(ContentError, match="float8_e5m2"):
        encode(torch.ones(2).to(torch.float8_e5m2))


# Damage


@pytest.mark.parametrize("shape", [(0, 2**70), (0, 2**62, 2**62)])
def test_a_shape_beyond_all_memory_is_refused(shape):
    with pytest.raises(ValueError, match="float32"):
        TorchCodec().restore("float32", shape, None, FOUR[:0])


FOUR = np.zeros(4, np.uint8)


@pytest.mark.parametrize(
    "parts",
    [
        ("float64", (1,), None),
        ("float", (1,), None),
        ("Tensor", (1,), None),
        ("float32", (2,), None),
        ("float32", (1, -1), None),
        ("float16", (2, 1), (0,)),
        ("float16", (2, 1), (0, 0)),
        ("float16", (2, 1), (1, 2)),
    ],
)
def test_a_tensor_that_does_not_fit_its_description_is_refused(parts):
    with pytest.raises(ValueError, match=r"no order|not a tensor"):
        TorchCodec().restore(*parts, FOUR)


@pytest.mark.parametrize(
    "value",
    [
        ("size", "2,3"),
        ("size", "02"),
        ("dtype", "float"),
        ("dtype", "load"),
        ("device", "nowhere"),
        ("load", "x"),
    ],
)
def test_a_text_that_is_never_written_is_refused(value):
    with pytest.raises(ValueError, match=r"cannot be|no device|invalid literal"):
        TorchCodec().build(*value)


def test_a_damaged_tensor_file_is_refused(tmp_path):
    states.save(tmp_path, {"w": VALUES})
    tree = (tmp_path / "tree.json").read_bytes()
    (tmp_path / "tree.json").write_bytes(tree.replace(b"float32", b"float64"))
    with pytest.raises(CorruptRecordError, match=r"tree\.json"):
        states.load(tmp_path)
