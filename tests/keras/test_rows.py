"""What ArrayRows picks is what plain indexing and Keras' own array adapter give."""

import keras
import numpy as np
import pandas as pd
import pytest
from keras.src.trainers.data_adapters import get_data_adapter
from keras.src.trainers.data_adapters.array_slicing import train_validation_split

from pybrush.content import encode
from pybrush.errors import ConfigurationError, UnsupportedError
from pybrush_keras.rows import rows_of, rows_to_forget
from pybrush_keras.views import places_of

N = 11
TENSORFLOW = keras.config.backend() == "tensorflow"


def numbers(*shape, dtype="float32", seed=0):
    return (np.random.default_rng(seed).normal(size=shape) * 10).astype(dtype)


def cases():
    """Arguments of fit as users pass them."""
    x, y, w = numbers(N, 3), numbers(N, seed=1), numbers(N, seed=2)
    table = pd.DataFrame({"a": numbers(N, dtype="float64"), "b": np.arange(N)})
    return {
        "x alone": (x,),
        "x and y": (x, y),
        "weights": (x, y, w),
        "weights without targets": (x, None, w),
        "doubles and halves": (x.astype("float64"), y.astype("float16")),
        "integers and booleans": (np.arange(N, dtype="uint8"), numbers(N) > 0),
        "images": (numbers(N, 4, 4, 1).astype("uint8"), np.arange(N)),
        "a dictionary": ({"left": x, "right": y}, {"out": y, "more": x}),
        "tuples in a dictionary": ({"pair": (x, y), "one": w}, y),
        "one weight for two targets": (x, {"a": y, "b": y}, w),
        "a weight in a column": (x, (y, y), w[:, None]),
        "a weight for each of two targets": (x, (y, y), (w, w)),
        "a target that is not used": (x, {"a": y, "b": None}),
        "a table": (table, table["b"]),
        "a table of doubles": (table[["a"]], table["a"]),
        "a column": (table["a"], y),
        "tensors": (keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)),
        "every other row of a larger array": (numbers(2 * N, 3)[::2], y[::-1]),
    }


def same(one, other):
    """Return whether two structures of arrays hold equal values of equal dtype."""
    keras.tree.assert_same_structure(one, other)
    pairs = zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True)
    return all(
        (a is None and b is None) or (a.dtype == b.dtype and a.shape == b.shape and (a == b).all()) for a, b in pairs
    )


@pytest.mark.parametrize("name", cases())
def test_batches_are_those_that_keras_trains_on(name):
    arguments = cases()[name]
    rows = rows_of(*arguments, batch_size=4)
    twin = list(get_data_adapter(*arguments, batch_size=4).get_numpy_iterator())
    for start, expected in zip(range(0, N, 4), twin, strict=True):
        batch = rows.batch(range(start, min(start + 4, N)))
        expected = expected if isinstance(expected, tuple) else (expected,)
        assert same(batch, expected)


@pytest.mark.parametrize("name", cases())
def test_rows_split_off_for_validation_are_those_that_keras_splits_off(name):
    arguments = (*cases()[name], None, None)[:3]
    rows = rows_of(*arguments, validation_split=0.3)
    train, rest = train_validation_split(arguments, 0.3)
    assert (len(rows), rows.whole_length) == (7, N)
    (expected,) = get_data_adapter(*train, batch_size=N).get_numpy_iterator()
    assert same(rows.batch(range(7)), expected if isinstance(expected, tuple) else (expected,))
    (theirs,) = get_data_adapter(*rest, batch_size=N).get_numpy_iterator()
    (ours,) = get_data_adapter(*rows.validation, batch_size=N).get_numpy_iterator()
    assert same(ours, theirs)


def test_batches_keep_the_order_that_was_asked_for():
    x, y = numbers(N, 3), np.arange(N)
    order = [7, 0, 10, 3, 3]
    batch = rows_of(x, y).batch(order)
    assert (batch[0] == x[order]).all() and (batch[1] == y[order]).all()
    assert same(rows_of({"a": x}, y).batch(np.array(order)), ({"a": x[order]}, y[order]))


def test_a_raw_sample_has_the_users_own_values_and_dtypes():
    x, y = numbers(N, 3, dtype="float64"), np.arange(N, dtype="int16")
    row = rows_of({"a": x, "b": [y, y]}, y, numbers(N, dtype="float64"))[4]
    assert row[0]["a"].dtype == "float64" and (row[0]["a"] == x[4]).all()
    assert row[0]["b"] == [4, 4] and row[1].dtype == "int16" and row[1].shape == () and row[2].dtype == "float64"


def test_there_are_as_many_rows_as_positions():
    rows = rows_of(numbers(N, 3), validation_split=0.2)
    assert len(list(rows)) == len(rows) == 8
    for position in (-1, 8, 10, 11):
        with pytest.raises(IndexError, match=f"8 rows; got position {position}"):
            rows[position]


@pytest.mark.skipif(TENSORFLOW, reason="torch and TensorFlow are not imported into one process")
def test_a_row_has_the_content_of_the_same_row_of_a_torch_data_set():
    import torch
    from torch.utils.data import TensorDataset

    arrays = (numbers(N, 3), numbers(N, seed=3), numbers(N, 2, 2, seed=4))
    for dtype in ("float64", "float32", "float16", "int64", "int32", "uint8", "bool"):
        given = [array.astype(dtype) for array in arrays]
        tensors = [torch.tensor(array) for array in given]
        # That a tensor and its array are one content is a test of the Lightning adapter.
        twin = [encode(tuple(part.numpy() for part in row)) for row in TensorDataset(*tensors)]
        assert [encode(row) for row in rows_of(*given)] == [encode(row) for row in rows_of(*tensors)] == twin


def test_text_is_str_in_a_raw_sample():
    for x in (np.array(["one", "two"]), np.array(["one", "two"], dtype=object)):
        assert rows_of(x, np.zeros(2))[1][0] == "two" and type(rows_of(x)[1][0]) is str
        encode(rows_of(x)[0])
    assert rows_of(np.array([["a", "b"]]))[0] == (["a", "b"],)
    assert rows_of(np.array([b"a"]))[0] == (b"a",)


@pytest.mark.skipif(not TENSORFLOW, reason="only TensorFlow has tensors of text")
def test_text_is_a_tensor_in_a_batch():
    batch = rows_of(np.array(["one", "two", "three"]), np.zeros(3)).batch([2, 0])
    assert batch[0].dtype == "string" and batch[0].numpy().tolist() == [b"three", b"one"]


def test_a_column_is_the_key_of_a_dictionary_and_ends_with_the_rows():
    x = {"id": np.arange(N), "pixels": numbers(N, 3), "nested": {"id": np.arange(N)}}
    rows = rows_of(x, validation_split=0.2)
    assert rows.column("id").tolist() == list(range(8))
    assert rows.column("nested") is None and rows.column("other") is None
    assert rows_of(x["pixels"]).column("id") is None
    assert rows_of(x).source is x


def test_a_callable_that_names_rows_is_handed_those_that_are_trained_on():
    table = pd.DataFrame({"id": np.arange(N), "b": numbers(N)})
    for x in ({"id": np.arange(N), "pixels": (numbers(N, 3),)}, table, {"id": keras.ops.arange(N)}):
        rows = rows_of(x, validation_split=0.2)
        assert [int(name) for name in rows.source["id"]] == list(range(8)) and type(rows.source) is type(x)


def test_settings_of_fit_are_kept():
    x = numbers(N)
    assert rows_of(x).batch_size == 32 and rows_of(x, batch_size=5).batch_size == 5
    assert [rows_of(x, shuffle=value).shuffle for value in (True, False, "batch")] == [True, False, "batch"]
    assert rows_of(x).shuffle is True and rows_of(x).validation is None and not rows_of(x).drop_last


def test_lists_are_tuples_only_where_the_backend_would_stack_them():
    x, y = numbers(N, 3), numbers(N)
    rows = rows_of([x, y], y)
    assert isinstance(rows[0][0], list)
    assert isinstance(rows.batch([0])[0], tuple if TENSORFLOW else list)


def test_a_batch_that_is_written_to_leaves_the_users_arrays_alone():
    x = numbers(N, 3)
    before = x.copy()
    rows_of(x).batch(range(N))[0][:] = 0
    assert (x == before).all()


class TestForgetSets:
    x, y, w = numbers(N, 3), np.arange(N), numbers(N)

    def where(self, *forget, rows=None):
        return (rows or rows_of(self.x, self.y, self.w)).positions_of(rows_of(*forget))

    def test_views_of_whole_rows_are_found(self):
        for cut in (slice(2, 5), slice(None), slice(1, None, 4), slice(9, 2, -3), slice(4, 5)):
            expected = list(range(N))[cut]
            assert self.where(self.x[cut], self.y[cut], self.w[cut]) == expected
            assert self.where(self.x[cut], self.y[cut]) == self.where(self.x[cut]) == expected

    def test_copies_are_not(self):
        assert self.where(self.x[[2, 3]], self.y[[2, 3]]) is None
        assert self.where(self.x.copy(), self.y) is None

    def test_other_rows_of_the_targets_are_not(self):
        assert self.where(self.x[2:5], self.y[3:6]) is None
        assert self.where(self.x[2:5], self.y[2:5].astype("int32")) is None

    def test_parts_of_rows_are_not(self):
        assert self.where(self.x[2:5, :2]) is None and self.where(self.x[2:5, ::-1]) is None
        assert (
            self.where(self.x.reshape(-1)[3:9]) is None and self.where(self.x.reshape(-1)[1:31].reshape(10, 3)) is None
        )
        assert self.where(self.x[2:5].view("int32")) is None

    def test_rows_in_another_layout_are_not(self):
        images = numbers(N, 2, 2)
        assert self.where(images.transpose(0, 2, 1)[2:4], rows=rows_of(images)) is None
        assert self.where(images[2:4], rows=rows_of(images)) == [2, 3]

    def test_views_from_before_the_rows_are_not(self):
        rows = rows_of(self.x[3:], self.y[3:])
        assert self.where(self.x[2:5], self.y[2:5], rows=rows) is None
        assert self.where(self.x[4:6], self.y[4:6], rows=rows) == [1, 2]

    def test_rows_that_are_only_validated_on_are_not(self):
        rows = rows_of(self.x, self.y, validation_split=0.2)
        assert self.where(self.x[5:8], self.y[5:8], rows=rows) == [5, 6, 7]
        assert self.where(self.x[5:9], self.y[5:9], rows=rows) is None

    def test_the_same_object_is_found_whatever_it_is(self):
        table, tensor = pd.DataFrame({"a": self.w, "b": self.y}), keras.ops.convert_to_tensor(self.x)
        for x in (table, tensor, {"a": self.x, "b": tensor}):
            assert rows_of(x, self.y).positions_of(rows_of(x, self.y)) == list(range(N))

    def test_dictionaries_are_found_by_all_their_arrays(self):
        rows = rows_of({"a": self.x, "b": self.y}, self.w)
        assert self.where({"a": self.x[1:4], "b": self.y[1:4]}, self.w[1:4], rows=rows) == [1, 2, 3]
        assert self.where({"a": self.x[1:4], "b": self.y[2:5]}, rows=rows) is None
        assert self.where({"a": self.x[1:4]}, rows=rows) is None

    def test_rows_without_an_address_of_their_own_are_not(self):
        same_row = np.broadcast_to(self.x[0], (N, 3))
        assert rows_of(same_row).positions_of(rows_of(same_row[2:4])) is None
        assert places_of(np.zeros((3, 0)), np.zeros((3, 0))) is None

    def test_a_forget_set_with_more_than_the_rows_have_is_not(self):
        assert self.where(self.x[1:3], self.y[1:3], rows=rows_of(self.x)) is None


def test_a_forget_set_is_one_to_three_parts():
    x, y, w = numbers(N, 3), np.arange(N), numbers(N)
    rows = rows_of(x, y, w)
    for forget in (x[2:4], (x[2:4],), (x[2:4], y[2:4]), (x[2:4], y[2:4], w[2:4])):
        assert rows.positions_of(rows_to_forget(forget)) == [2, 3]
    assert encode(rows_to_forget((x[[5]], y[[5]], w[[5]]))[0]) == encode(rows[5])
    for forget in ((), (x, y, w, w)):
        with pytest.raises(UnsupportedError, match=f"got a tuple of {len(forget)}"):
            rows_to_forget(forget)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((numbers(4, 2), numbers(3)), r"x has 4 rows and y has 3"),
        (({"a": numbers(4), "b": numbers(5)},), r"x\['a'\] has 4 rows and x\['b'\] has 5"),
        ((numbers(4, 2), numbers(4), numbers(2)), r"x has 4 rows and sample_weight has 2"),
        ((numbers(0, 2),), "at least one row"),
        (({},), "at least one row"),
        ((np.float32(3),), "x is a single value"),
    ],
)
def test_arrays_without_one_row_each_are_refused(arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        rows_of(*arguments)


@pytest.mark.parametrize(
    ("y", "weights", "words"),
    [
        ({"a": numbers(4), "b": numbers(4)}, numbers(4, 2), r"one weight for each row; got shape \(4, 2\)"),
        ({"a": numbers(4), "b": numbers(4)}, {"a": numbers(4)}, "have the structure of y"),
        ((numbers(4), numbers(4)), (numbers(4), (numbers(4),)), "have the structure of y"),
    ],
    ids=str,
)
def test_weights_that_keras_refuses_are_refused(y, weights, words):
    with pytest.raises(ConfigurationError, match=words):
        rows_of(numbers(4), y, weights)
    with pytest.raises(ValueError, match=r"sample_weight|samples"):
        get_data_adapter(numbers(4), y, weights)


def test_settings_that_keras_does_not_have_are_refused():
    for arguments in ({"batch_size": 0}, {"batch_size": 1.5}):
        with pytest.raises(ConfigurationError, match="batch_size must be a whole number"):
            rows_of(numbers(4), **arguments)
    with pytest.raises(ConfigurationError, match="shuffle must be True, False or 'batch'; got 'rows'"):
        rows_of(numbers(4), shuffle="rows")


@pytest.mark.parametrize("share", [0.999999999, 1e-18, 1.0, 1.5, -0.2])
def test_a_split_that_leaves_one_side_empty_is_refused(share):
    if share == 1e-18:  # rounds to no split at all, for Keras too
        with pytest.raises(ValueError, match="not sufficient to split"):
            train_validation_split((numbers(3),), share)
    with pytest.raises(ConfigurationError, match=f"validation_split .*{share} of 3 rows"):
        rows_of(numbers(3), validation_split=share)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return numbers(4, 2), numbers(4)


def generator():
    yield numbers(4, 2), numbers(4)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (generator(), r"a generator cannot give.*Pass arrays, pybrush_keras.Source"),
        (generator, "a function cannot give.*Pass arrays"),
        (iter([1, 2]), "list_iterator cannot give"),
        (Batches(), r"Batches cannot give. It gives batches, .*pybrush_keras.Source\(entries, y, load=...\)"),
        (None, "NoneType cannot give"),
        ("folder/", "a str cannot give"),
        ([1.0, 2.0, 3.0], r"got a builtins.float. Pass np.array\(...\)"),
        ([numbers(3), "three"], "got a builtins.str"),
        (object(), "got a builtins.object"),
    ],
)
def test_data_without_rows_that_can_be_picked_is_refused_with_what_to_pass(x, words):
    with pytest.raises(UnsupportedError, match=words):
        rows_of(x)


def test_sparse_and_ragged_arrays_are_refused():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(UnsupportedError, match=r"dense arrays; got a scipy.sparse.*toarray\(\)"):
        rows_of(sparse.eye(4, format="csr"))
    if TENSORFLOW:
        import tensorflow as tf

        for x in (tf.sparse.from_dense(np.eye(3)), tf.ragged.constant([[1], [2, 3]])):
            with pytest.raises(UnsupportedError, match=f"dense arrays.*{type(x).__name__}"):
                rows_of({"a": x})
    else:
        import torch

        with pytest.raises(UnsupportedError, match="dense arrays"):
            rows_of(torch.eye(3).to_sparse())
        with pytest.raises(UnsupportedError, match=r"DataLoader cannot give.*Pass the arrays it reads"):
            rows_of(torch.utils.data.DataLoader(torch.eye(3)))
