"""The one module to deploy: it is copied, stored, moved and exported, and answers as the plain mean says."""

import copy
import io
import logging

import lightning
import numpy as np
import onnx
import pytest
import pytorch_lightning as pl
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.utils.data import DataLoader

from pybrush.attributes import plain_attributes
from pybrush.errors import ConfigurationError
from pybrush.record import Record
from pybrush_lightning.aggregate import AggregateModule, Constituent, tensors_of
from pybrush_lightning.attributes import known_parts
from pybrush_lightning.models import MLP, SmallCNN
from tests.lightning.models import Body, Net, OtherNet, Rows
from tests.lightning.test_spaces import TESTED, outputs
from tests.lightning.twin import KEY, Case, trainer_for

SHAPES = {"perceptron": (1, 8, 8), "convolutions": (1, 28, 28), "other package": (6,), "no Lightning": (6,)}
BATCH = torch.export.Dim.DYNAMIC


def made(name):
    return {
        "perceptron": lambda: MLP(64), "convolutions": SmallCNN, "other package": OtherNet,
        "no Lightning": lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)),
    }[name]()  # fmt: skip


def trained(name):
    """Return a module that has seen a few batches, so that BatchNorm has something to say."""
    module = made(name).train()
    with torch.no_grad():
        for _ in range(3):
            module(2 * torch.randn(16, *SHAPES[name]) + 1)
    return module.eval()


def constituent(module):
    known = known_parts(module)
    attributes = {name: plain_attributes(part, known) for name, part in module.named_modules()}
    return Constituent({name: tensor.detach().clone() for name, tensor in tensors_of(module).items()}, attributes)


def deployed(name, space="logits", how="mean"):
    """Return an aggregate of three, two batches of different size, and what it has to answer for them."""
    torch.manual_seed(3)
    members = [trained(name) for _ in range(3)]
    held = {shard: constituent(member) for shard, member in enumerate(members)}
    batches = [torch.randn(rows, *SHAPES[name]) for rows in (5, 9)]
    expected = []
    for batch in batches:
        with torch.no_grad():
            own = torch.stack([member(batch) for member in members])
        chosen = nn.functional.one_hot(own.argmax(-1), own.shape[-1]).sum(0)
        share = (chosen + 1 / own.shape[-1]) / 4 if how == "vote" else own.softmax(-1).mean(0)
        expected.append(own.mean(0) if space == "values" else share.log())
    return AggregateModule(made(name), held, space, how), batches, expected


def assert_answers(found, batches, expected):
    for batch, answer in zip(batches, expected, strict=True):
        torch.testing.assert_close(found(batch), answer, rtol=1e-4, atol=1e-5)


KINDS = [(name, "logits", "mean") for name in SHAPES] + [
    ("perceptron", "values", "mean"),
    ("perceptron", "logits", "vote"),
]


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_it_is_traced_without_a_trainer_and_the_trace_serves_other_batches(kind):
    module, batches, expected = deployed(*kind)
    with torch.no_grad():
        traced = torch.jit.trace(module, batches[0])
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        assert_answers(torch.jit.load(file), batches, expected)


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_it_is_exported_with_a_free_batch_size(kind):
    module, batches, expected = deployed(*kind)
    with torch.no_grad():
        program = torch.export.export(module, (batches[0],), dynamic_shapes=(({0: BATCH},),))
        assert_answers(program.module(), batches, expected)


@pytest.fixture
def quiet_export():
    """torch tells which packages it has not found."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    "kind",
    [
        ("convolutions", "logits", "mean"),
        *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS if kind[0] != "convolutions"),
    ],
    ids=" ".join,
)
def test_an_onnx_file_answers_the_same_in_a_runtime_that_knows_no_torch(kind, tmp_path, quiet_export):
    module, batches, expected = deployed(*kind)
    program = torch.onnx.export(module, (batches[0],), dynamo=True, dynamic_shapes=(({0: BATCH},),), verbose=False)
    program.save(tmp_path / "deployed.onnx")
    stored = onnx.load(tmp_path / "deployed.onnx")
    onnx.checker.check_model(stored)
    runtime = ReferenceEvaluator(stored)
    (name,) = runtime.input_names
    assert_answers(lambda batch: torch.from_numpy(runtime.run(None, {name: np.asarray(batch)})[0]), batches, expected)


def test_it_is_copied_and_its_state_fills_another():
    module, batches, expected = deployed("convolutions")
    copied = copy.deepcopy(module)
    assert_answers(copied, batches, expected)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    empty = constituent(made("convolutions"))
    other = AggregateModule(made("convolutions"), dict.fromkeys(range(3), empty), "logits", "mean")
    assert not torch.allclose(other(batches[0]), expected[0])
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_answers(other, batches, expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert_answers(module, batches, expected)


def test_members_share_no_memory_with_each_other_or_the_record():
    empty = constituent(made("perceptron"))
    module = AggregateModule(made("perceptron"), dict.fromkeys(range(3), empty), "logits", "mean")
    places = [tensor.data_ptr() for tensor in [*module.parameters(), *module.buffers(), *empty.tensors.values()]]
    assert len(set(places)) == len(places)


def test_it_moves_to_another_type_and_device():
    module, batches, expected = deployed("perceptron")
    double = copy.deepcopy(module).double()
    for batch, answer in zip(batches, expected, strict=True):
        found = double(batch.double())
        assert found.dtype is torch.float64
        torch.testing.assert_close(found.float(), answer, rtol=1e-4, atol=1e-5)
    there = module.to("meta")
    assert there(batches[0].to("meta")).device.type == "meta"


def test_gradients_reach_the_inputs():
    module, batches, _ = deployed("perceptron")
    inputs = batches[0].clone().requires_grad_()
    module(inputs)[:, 0].sum().backward()
    shifted = batches[0].double()
    shifted[2, 0, 3, 3] += 1e-4
    double = module.double()
    with torch.no_grad():
        slope = (double(shifted)[:, 0].sum() - double(batches[0].double())[:, 0].sum()) / 1e-4
    assert float(inputs.grad[2, 0, 3, 3]) == pytest.approx(float(slope), rel=1e-2)


# From a record


def record_of(make, folder, package=lightning, **trainer):
    case = Case(shards=3, slices=1, epochs=1, package=package, trainer=trainer)
    trained, module = trainer_for(case, folder), make()
    trained.fit(module, DataLoader(Rows(), batch_size=5, shuffle=True))
    return trained, module


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_constituents_keep_the_type_in_which_they_are_stored(dtype):
    torch.manual_seed(1)
    members = [trained("other package").to(dtype) for _ in range(2)]
    held = {shard: constituent(member) for shard, member in enumerate(members)}
    module = AggregateModule(OtherNet(), held, "logits", "mean")
    for member, own in zip(module.members, members, strict=True):
        assert all(torch.equal(tensor, tensors_of(own)[name]) for name, tensor in tensors_of(member).items())
        assert {parameter.dtype for parameter in member.parameters()} == {dtype}
        assert member.net[1].num_batches_tracked.dtype is torch.int64
    batch = torch.randn(5, 6, dtype=dtype)
    with torch.no_grad():
        mean = torch.stack([member(batch).double().softmax(-1) for member in members]).mean(0)
        found = module(batch)
    assert found.dtype is dtype
    torch.testing.assert_close(found.double().exp(), mean, rtol=3e-2 if dtype is torch.bfloat16 else 1e-12, atol=1e-12)


class Plain:
    """Trains without logging, which Lightning cannot do inside of a compiled step."""

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class PlainNet(Plain, Net):
    """For `lightning`."""


class PlainOther(Plain, Body, pl.LightningModule):
    """For `pytorch_lightning`."""


class CompiledPart(Net):
    """Compiles a part of itself."""

    def __init__(self):
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")


@pytest.mark.parametrize(
    ("make", "package"),
    [
        pytest.param(lambda: torch.compile(PlainNet(), backend="eager"), lightning, id="lightning"),
        pytest.param(CompiledPart, lightning, id="a part"),
        pytest.param(
            lambda: torch.compile(PlainOther(), backend="eager"), pl, id="pytorch_lightning", marks=pytest.mark.long
        ),
    ],
)
def test_compiled_modules_are_aggregated(make, package, tmp_path):
    trainer, compiled = record_of(make, tmp_path, package)
    module = trainer.lightning_module
    plain = make if make is CompiledPart else {lightning: PlainNet, pl: PlainOther}[package]
    mean = outputs(tmp_path, plain, TESTED.x).softmax(-1).mean(0)
    predicted = torch.cat(trainer.predict(compiled, DataLoader(TESTED, batch_size=8)))
    torch.testing.assert_close(predicted.double().exp(), mean, rtol=1e-5, atol=1e-6)
    for given in (module, plain()):
        found = Record.open(tmp_path / "record", KEY).aggregate(given)(TESTED.x)
        torch.testing.assert_close(found.double().exp(), mean, rtol=1e-5, atol=1e-6)


def test_it_may_be_built_inside_of_an_evaluation_and_used_outside(tmp_path):
    record_of(Net, tmp_path)
    with torch.inference_mode():
        module = Record.open(tmp_path / "record", KEY).aggregate(Net())
    inputs = TESTED.x.clone().requires_grad_()
    module(inputs).sum().backward()
    assert inputs.grad is not None and all(parameter.grad is not None for parameter in module.parameters())


def test_it_holds_neither_trainer_nor_record_nor_the_users_module(tmp_path):
    trainer, module = record_of(Net, tmp_path)
    found = Record.open(tmp_path / "record", KEY).aggregate(module)
    seen, left = set(), [vars(part) for part in found.modules()]
    while left:
        item = left.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        assert item is not trainer and item is not module and not isinstance(item, Record)
        left += list(item.values()) if isinstance(item, dict) else list(item) if isinstance(item, (list, tuple)) else []
        left += [vars(item)] if isinstance(item, nn.Module) else []


def test_a_forward_that_is_set_on_the_module_and_would_run_the_original_is_refused(tmp_path):
    _, module = record_of(Net, tmp_path)
    own = module.forward
    module.forward = lambda x: 2 * own(x)
    with pytest.raises(ConfigurationError, match="forward was set on the module itself"):
        Record.open(tmp_path / "record", KEY).aggregate(module)
