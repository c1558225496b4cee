"""A Source gives the rows that indexing its arrays and calling its load function gives."""

import keras
import numpy as np
import pytest
from keras.src.trainers.epoch_iterator import EpochIterator

from pybrush.content import encode
from pybrush.errors import ConfigurationError, UnsupportedError
from pybrush_keras import Source
from pybrush_keras.rows import rows_of

N = 11
X = np.random.default_rng(0).normal(size=(N, 3)).astype("float32")
Y = np.arange(N)
W = np.random.default_rng(1).random(N).astype("float32")


class Folder:
    """Files of an array each, and the function that reads one; it notes what it read."""

    def __init__(self, path, dtype="float32"):
        self.files, self.read = [], []
        for number in range(N):
            self.files.append(str(path / f"{number:02d}.npy"))
            np.save(self.files[-1], X[number].astype(dtype))

    def load(self, file):
        self.read.append(self.files.index(file))
        return np.load(file)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def linear():
    """A model whose prediction is the sum of a row."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


def test_batches_are_cut_in_data_order(folder):
    for source in (Source(X, Y, batch_size=4), Source(folder.files, Y, load=folder.load, batch_size=4)):
        assert len(source) == source.num_batches == 3
        for index, batch in enumerate(source):
            part = slice(4 * index, 4 * index + 4)
            assert (batch[0] == X[part]).all() and (batch[1] == Y[part]).all() and batch[0].dtype == "float32"
        for index in (-1, 3):
            with pytest.raises(IndexError, match=f"3 batches; got index {index}"):
                source[index]


def test_rows_are_those_of_the_arrays(folder):
    twin = rows_of(X, Y, W)
    for source in (Source(X, Y, sample_weight=W), Source(folder.files, Y, sample_weight=W, load=folder.load)):
        rows = rows_of(source)
        assert len(rows) == rows.whole_length == N and rows.source is source and rows.validation is None
        assert [encode(row) for row in rows] == [encode(row) for row in twin]
        for order in ([7, 0, 10, 3, 3], np.array([2])):
            batch = rows.batch(order)
            assert all((one == other).all() for one, other in zip(batch, (X[order], Y[order], W[order]), strict=True))
        with pytest.raises(IndexError, match="11 rows; got position 11"):
            rows[N]


def test_loaded_floats_are_those_that_keras_trains_on(tmp_path):
    folder = Folder(tmp_path, "float64")
    rows = rows_of(Source(folder.files, Y, load=folder.load))
    assert rows[2][0].dtype == "float64" and rows.batch([2])[0].dtype == "float32"
    assert encode(rows[2]) == encode(rows_of(X.astype("float64"), Y)[2])


def test_only_the_rows_that_are_asked_for_are_read(folder):
    source = Source(folder.files, Y, load=folder.load, ids=folder.files)
    rows = rows_of(source)
    assert (len(rows), rows.column("ids"), folder.read) == (N, folder.files, [])
    rows.batch([5, 2])
    assert rows[7] and folder.read == [5, 2, 7]


def test_structures_of_arrays_may_be_loaded():
    def load(entry):
        return {"row": X[entry], "pair": (Y[entry], float(entry)), "name": f"row {entry}"}

    rows = rows_of(Source(range(N), Y, load=load))
    x, _ = rows[3]
    assert (x["row"] == X[3]).all() and x["pair"] == (3, 3.0) and x["name"] == "row 3"
    x, _ = rows.batch([3, 1])
    assert (x["row"] == X[[3, 1]]).all() and x["pair"][0].tolist() == [3, 1] and x["pair"][1].dtype == "float32"


def test_loaded_text_is_kept_to_its_last_character():
    rows = rows_of(Source([0, 1], load=lambda entry: (b"zero\0", "one\0")))
    assert rows[1] == ((b"zero\0", "one\0"),)
    if keras.config.backend() == "tensorflow":
        (found,) = rows.batch([0, 1])
        assert [part.numpy().tolist() for part in found] == [[b"zero\0"] * 2, [b"one\0"] * 2]


def test_nested_targets_keep_their_weights_together():
    rows = rows_of(Source(list(range(N)), {"a": Y, "b": Y}, sample_weight=W, load=lambda entry: X[entry]))
    _, y, w = rows.batch([4])
    assert set(y) == set(w) == {"a", "b"} and w["a"] == w["b"] == W[4]


def test_columns_are_what_was_passed(folder):
    named = {"ids": np.arange(100, 100 + N), "subjects": [("a", "b")] * N, "times": ["2024-01-01"] * N}
    for source in (Source(X, Y, **named), Source(folder.files, load=folder.load, **named)):
        rows = rows_of(source)
        assert rows.column("ids") == list(range(100, 100 + N))
        assert rows.column("subjects") == [("a", "b")] * N and rows.column("times") == ["2024-01-01"] * N
        assert rows.column("other") is None
    assert rows_of(Source({"key": Y, "x": X}, Y)).column("key").tolist() == Y.tolist()
    assert rows_of(Source(X)).column("ids") is None


@pytest.mark.parametrize(
    ("source", "fit", "expected"),
    [(True, True, True), (True, False, False), (False, True, False), (True, "batch", "batch"), ("batch", True, "batch")]
    + [("batch", False, False), (False, "batch", False)],
)
def test_rows_are_shuffled_where_source_and_fit_both_say_so(source, fit, expected):
    assert rows_of(Source(X, Y, shuffle=source, batch_size=5), shuffle=fit).shuffle is expected
    assert rows_of(Source(X, Y, batch_size=5)).batch_size == 5


def epoch_of(source):
    return [row for batch in source for row in batch[1].tolist()]


def test_orders_are_drawn_inside_shuffled_alone():
    source = Source(X, Y, batch_size=4)
    source.on_epoch_end()
    assert epoch_of(source) == Y.tolist()
    with source.shuffled():
        orders = []
        for _ in range(3):
            source.on_epoch_end()
            orders.append(epoch_of(source))
    assert all(sorted(order) == Y.tolist() != order for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert epoch_of(source) == Y.tolist()


def test_whole_batches_are_shuffled_and_a_short_one_stays_last():
    source = Source(X, Y, batch_size=2, shuffle="batch")
    with source.shuffled():
        source.on_epoch_end()
        order = epoch_of(source)
    assert order[-1] == 10 and order != Y.tolist()
    assert (
        sorted(order[:-1:2]) == [0, 2, 4, 6, 8]
        and [b - a for a, b in zip(order[:-1:2], order[1::2], strict=True)] == [1] * 5
    )


def test_a_source_without_shuffle_has_one_order():
    source = Source(X, Y, batch_size=4, shuffle=False)
    with source.shuffled():
        source.on_epoch_end()
        assert epoch_of(source) == Y.tolist()


def test_keras_seeds_decide_the_orders():
    def drawn(seed):
        keras.utils.set_random_seed(seed)
        source = Source(X, Y)
        with source.shuffled():
            source.on_epoch_end()
            return epoch_of(source)

    assert drawn(1) == drawn(1) != drawn(2)


def test_plain_keras_trains_evaluates_and_predicts_on_it(folder):
    source, twin = Source(folder.files, Y, load=folder.load, batch_size=4), linear()
    model = linear()
    model.fit(source, shuffle=False, epochs=2, verbose=0)
    twin.fit(X, Y, batch_size=4, shuffle=False, epochs=2, verbose=0)
    for found, expected in zip(model.get_weights(), twin.get_weights(), strict=True):
        assert (found == expected).all()
    assert model.evaluate(source, verbose=0) == twin.evaluate(X, Y, batch_size=4, verbose=0)
    assert (model.predict(source, verbose=0) == twin.predict(X, batch_size=4, verbose=0)).all()


@pytest.mark.parametrize(
    ("settings", "asked", "is_shuffled"),
    [({}, {}, True), ({"shuffle": False}, {}, False), ({}, {"shuffle": False}, False)],
    ids=str,
)
def test_a_plain_fit_trains_in_the_order_that_the_source_says(folder, settings, asked, is_shuffled):
    source, seen = Source(folder.files, Y, load=folder.load, batch_size=4, **settings), []

    class Note(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            folder.read.clear()

        def on_epoch_end(self, epoch, logs=None):
            seen.append(list(folder.read))

    for _ in range(2):
        linear().fit(source, epochs=2, verbose=0, callbacks=[Note()], **asked)
    assert all(sorted(read) == Y.tolist() for read in seen) and len(seen) == 4
    assert len({tuple(read) for read in seen}) == (4 if is_shuffled else 1)
    assert (seen[0] == Y.tolist()) is not is_shuffled
    # Rows are shuffled, not whole batches.
    assert not is_shuffled or any(sorted(read[:4]) not in ([0, 1, 2, 3], [4, 5, 6, 7]) for read in seen)
    assert epoch_of(source) == Y.tolist()


@pytest.mark.parametrize("workers", [1, 3])
def test_every_row_is_trained_on_once_an_epoch_in_other_orders(folder, workers):
    source = Source(folder.files, Y, load=folder.load, batch_size=4)
    source.workers = workers
    epochs = EpochIterator(source, shuffle=False)
    with source.shuffled():
        epochs.reset()
        orders = [[row for _, _, step in epochs for _, y in step for row in y.tolist()] for _ in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == Y.tolist() for order in orders)


def test_a_fit_in_shuffled_trains_on_every_row_and_leaves_data_order(folder):
    source, model, seen = Source(folder.files, Y, load=folder.load, batch_size=4), linear(), []

    class Note(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            folder.read.clear()

        def on_epoch_end(self, epoch, logs=None):
            seen.append(tuple(folder.read))

    with source.shuffled():
        model.fit(source, shuffle=False, epochs=3, verbose=0, callbacks=[Note()])
    assert len(set(seen)) == 3 and all(sorted(read) == list(range(N)) for read in seen)
    assert (model.predict(source, verbose=0) == model.predict(X, batch_size=4, verbose=0)).all()


class TestForgetSets:
    def test_the_same_source_is_all_its_rows(self, folder):
        for source in (Source(X, Y), Source(folder.files, Y, load=folder.load)):
            assert rows_of(source).positions_of(rows_of(source)) == list(range(N))

    def test_views_of_its_arrays_are_found(self):
        rows = rows_of(Source(X, Y))
        assert (
            rows.positions_of(rows_of(Source(X[2:4], Y[2:4]))) == rows.positions_of(rows_of(X[2:4], Y[2:4])) == [2, 3]
        )
        assert rows.positions_of(rows_of(Source(X[[2, 3]], Y[[2, 3]]))) is None

    def test_views_of_its_files_are_found_where_the_same_function_loads_them(self, folder):
        files, load = np.array(folder.files), folder.load
        rows = rows_of(Source(files, Y, load=load))
        assert rows.positions_of(rows_of(Source(files[3:6], load=load))) == [3, 4, 5]
        assert rows.positions_of(rows_of(Source(files[[3, 4]], load=load))) is None
        assert rows.positions_of(rows_of(Source(files[3:6], load=lambda file: X[0]))) is None
        assert rows.positions_of(rows_of(Source(folder.files, load=load))) is None
        assert rows.positions_of(rows_of(X, Y)) is None and rows_of(X, Y).positions_of(rows) is None

    def test_the_same_list_of_files_is_all_rows(self, folder):
        load = folder.load
        assert rows_of(Source(folder.files, Y, load=load)).positions_of(
            rows_of(Source(folder.files, load=load))
        ) == list(range(N))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"y": Y[:4]}, "x has 11 rows and y has 4"),
        ({"y": Y, "sample_weight": W[:4]}, "x has 11 rows and sample_weight has 4"),
        ({"ids": Y[:4]}, "ids needs one entry for each of the 11 rows; got 4"),
        ({"subjects": []}, "subjects needs one entry for each of the 11 rows; got 0"),
        ({"times": ["2024-01-01"]}, "times needs one entry"),
    ],
    ids=str,
)
def test_what_has_not_one_entry_a_row_is_refused(arguments, words):
    for more in ({}, {"load": lambda row: row}):
        with pytest.raises(ConfigurationError, match=words):
            Source(X, **arguments, **more)


def test_settings_that_keras_does_not_have_are_refused():
    for size in (0, -3, 2.5, True, None, "32"):
        with pytest.raises(ConfigurationError, match="batch_size must be a whole number of rows, at least 1"):
            Source(X, batch_size=size)
    with pytest.raises(ConfigurationError, match="shuffle must be True, False or 'batch'; got 'rows'"):
        Source(X, shuffle="rows")


def test_a_source_without_rows_is_refused():
    for arguments in ((np.zeros((0, 2)),), ([],)):
        with pytest.raises(ConfigurationError, match="at least one row"):
            Source(*arguments, load=None if isinstance(arguments[0], np.ndarray) else str)


@pytest.mark.parametrize(
    "entries", ["folder/", iter([1, 2]), 3, None], ids=["text", "an iterator", "a number", "nothing"]
)
def test_entries_that_cannot_be_listed_are_refused(entries):
    with pytest.raises(UnsupportedError, match="one entry for each row, such as a list of paths"):
        Source(entries, load=str)


def test_what_load_returns_must_be_arrays_of_one_shape():
    ragged = rows_of(Source([1, 2], load=np.zeros))
    assert len(ragged[1][0]) == 2
    with pytest.raises(ConfigurationError, match="arrays of one structure and shape for every row of a batch"):
        ragged.batch([0, 1])
    mixed = rows_of(Source([1, 2], load=lambda entry: {entry: X[0]}))
    with pytest.raises(ConfigurationError, match="arrays of one structure"):
        mixed.batch([0, 1])
    with pytest.raises(UnsupportedError, match=r"got a list of 2. Return np.array"):
        rows_of(Source([1], load=lambda entry: [1.0, 2.0]))[0]
    with pytest.raises(UnsupportedError, match="builtins"):
        rows_of(Source([1], load=lambda entry: object()))[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"y": Y}, "y works with arrays alone; x is a Source. Leave out y="),
        ({"batch_size": 4}, "batch_size works with arrays alone"),
        ({"validation_split": 0.2}, "validation_split works with arrays alone"),
    ],
    ids=str,
)
def test_what_belongs_into_the_source_is_refused_beside_it(arguments, words):
    with pytest.raises(UnsupportedError, match=words):
        rows_of(Source(X, Y), **arguments)
