"""What is picked from a tf.data pipeline is what iterating the pipeline itself gives."""

import functools
from pathlib import Path

import keras
import numpy as np
import pytest

from pybrush.content import encode
from pybrush.errors import ConfigurationError, UnsupportedError
from pybrush_keras import _private_tf
from pybrush_keras.rows import rows_of, rows_to_forget

tf = pytest.importorskip("tensorflow")
TENSORFLOW = keras.config.backend() == "tensorflow"

N = 11
X = np.random.default_rng(0).normal(size=(N, 3)).astype("float32")
Y = np.arange(N)
slices = tf.data.Dataset.from_tensor_slices


def double(x, y):
    return x * 2, y


def named(x, y):
    return {"id": y, "pixels": x}, tf.cast(y, "float32")


def looked_up(i):
    return tf.gather(X, i), i


def in_python(x, y):
    return tf.numpy_function(lambda v: v[::-1].copy(), [x], tf.float32), y


@functools.cache
def pipelines():
    """Pipelines in data order, so that iterating them is the twin."""
    data = slices((X, Y))
    words = slices((["one", "two", "three"] * 3, np.arange(9)))
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["one", "two"], [5, 7]), -1)
    return {
        "arrays": data.batch(4),
        "x alone": slices(X).batch(4),
        "three parts": slices((X, Y, X[:, 0])).batch(4),
        "a dictionary": slices(({"a": X, "b": (Y, X)}, Y)).batch(4),
        "only a dictionary": slices({"a": X, "b": Y}).batch(4),
        "a map": data.map(double).batch(4),
        "maps in parallel": data.map(double, num_parallel_calls=tf.data.AUTOTUNE).map(named).batch(4),
        "a map to a dictionary": data.map(named).batch(4),
        "a zip": tf.data.Dataset.zip((slices(X), slices(Y))).batch(4),
        "a zip of mapped parts": tf.data.Dataset.zip((slices(X).map(lambda x: x + 1), slices(Y))).map(double).batch(4),
        "a zip of unequal parts": tf.data.Dataset.zip({"a": slices(X[:7]), "b": slices(X).skip(3)}).batch(4),
        "a range": tf.data.Dataset.range(N).map(looked_up).batch(4),
        "a range by steps": tf.data.Dataset.range(1, 20, 3).batch(4),
        "a range of another type": tf.data.Dataset.range(2, 9, output_type="int32").batch(4),
        "text that ends in zeros": slices(([b"a\0", b"b"], [0, 1])).batch(4),
        "cached text": words.map(lambda word, y: (word + "\0", y)).cache().batch(4),
        "a range backwards": tf.data.Dataset.range(20, 1, -3).batch(4),
        "prefetch, cache and options": data.cache()
        .map(double)
        .cache()
        .batch(4)
        .prefetch(2)
        .with_options(tf.data.Options()),
        "take": data.take(5).map(double).batch(4),
        "take all": data.take(-1).batch(4),
        "take more than there are": data.take(100).batch(4),
        "skip": data.map(double).skip(3).batch(4),
        "skip and take": data.skip(2).take(6).skip(1).map(double).skip(1).batch(4),
        "take batches": data.batch(4).take(2),
        "skip batches": data.map(double).batch(4).skip(1).skip(1),
        "batches in parallel": data.batch(4, num_parallel_calls=2),
        "a map of batches": data.batch(4).map(double),
        "maps before and of batches": data.map(double).batch(4).map(named).prefetch(1).map(lambda x, y: (x, y, y)),
        "a map of batches that looks at all rows": data.batch(4).map(lambda x, y: (x - tf.reduce_mean(x, 0), y)),
        "text": words.batch(4),
        "text of several words": slices(([["a", "b"], ["c", "d"]], [0, 1])).batch(4),
        "a table of words": words.map(lambda word, y: (table.lookup(word), y)).batch(4),
        "python": data.map(in_python).batch(4),
        "batches of one": data.batch(1),
        "half precision": slices((tf.cast(X, "bfloat16"), Y.astype("float16"))).batch(4),
    }


def as_tuple(element):
    return element if isinstance(element, tuple) else (element,)


def arrays_of(structure):
    return [leaf if isinstance(leaf, np.ndarray) else leaf.numpy() for leaf in keras.tree.flatten(structure)]


@pytest.mark.parametrize("name", pipelines())
def test_batches_are_those_of_the_pipeline(name):
    dataset = pipelines()[name]
    rows, start = rows_of(dataset), 0
    for expected in dataset:
        count = keras.tree.flatten(expected)[0].shape[0]
        batch = rows.batch(range(start, start + count))
        keras.tree.assert_same_structure(batch, as_tuple(expected))
        for found, twin in zip(arrays_of(batch), arrays_of(expected), strict=True):
            assert found.dtype == twin.dtype and (found == twin).all()
        start += count
    assert start == len(rows) == rows.whole_length and rows.shuffle is False and not rows.drop_last


@pytest.mark.parametrize("name", [name for name in pipelines() if "of batches" not in name])
def test_raw_samples_are_the_rows_of_the_pipeline(name):
    dataset = pipelines()[name]
    rows, twin = rows_of(dataset), list(dataset.unbatch())
    assert len(rows) == len(twin)
    for position, expected in enumerate(twin):
        row = rows[position]
        keras.tree.assert_same_structure(keras.tree.map_structure(lambda leaf: 0, as_tuple(expected)), outline(row))
        expected = keras.tree.map_structure(lambda leaf: plain(leaf.numpy()), as_tuple(expected))
        assert encode(row) == encode(expected)


def plain(value):
    """Return text of TensorFlow as bytes or lists of bytes."""
    return value.tolist() if isinstance(value, np.ndarray) and value.dtype.kind == "O" else value


def outline(row):
    """Return a row with 0 in place of its values; text of several words is one value."""
    return keras.tree.map_structure(lambda leaf: 0, tuple(0 if isinstance(part, list) else part for part in row))


def test_a_raw_sample_is_the_row_before_the_maps_of_batches():
    rows = rows_of(slices((X, Y)).map(double).batch(4).map(named))
    assert encode(rows[3]) == encode((X[3] * 2, Y[3]))
    assert rows.batch([3])[0]["pixels"].tolist() == [(X[3] * 2).tolist()]


def test_rows_have_the_content_that_they_have_in_arrays():
    rows, twin = rows_of(slices((X, Y)).batch(4)), rows_of(X, Y)
    assert [encode(row) for row in rows] == [encode(row) for row in twin]


def test_batches_keep_the_order_that_was_asked_for():
    order = [7, 0, 10, 3, 3]
    for dataset in (slices((X, Y)).batch(4), slices((X, Y)).map(lambda x, y: (x, y)).batch(4)):
        for positions in (order, np.array(order)):
            x, y = rows_of(dataset).batch(positions)
            assert (x == X[order]).all() and (y == Y[order]).all()


def test_positions_without_a_row_are_no_rows():
    rows = rows_of(slices((X, Y)).take(5).batch(4))
    for position in (-1, 5, 11):
        with pytest.raises(IndexError, match=f"5 rows; got position {position}"):
            rows[position]
    assert len(list(rows)) == 5


def test_settings_come_from_the_steps():
    data = slices((X, Y))
    assert rows_of(data.batch(7)).batch_size == 7
    assert rows_of(data.batch(7, drop_remainder=True)).drop_last
    shuffled = {
        False: data.batch(4),
        True: data.shuffle(5).batch(4),
        "batch": data.batch(4).shuffle(3),
    }
    assert {rows_of(dataset).shuffle: dataset for dataset in shuffled.values()} == shuffled
    assert rows_of(data.shuffle(5, seed=1).map(double).batch(4).shuffle(3)).shuffle is True
    assert rows_of(data.batch(4)).validation is None


def test_shuffled_pipelines_are_picked_from_in_data_order():
    data = slices((X, Y))
    for dataset in (data.shuffle(N).map(double).batch(4), data.map(double).batch(4).shuffle(2)):
        x, y = rows_of(dataset).batch(range(N))
        assert (x == X * 2).all() and (y == Y).all()


def test_no_row_is_read_before_it_is_asked_for():
    seen = []

    def noting(y):
        seen.append(int(y))
        return y

    dataset = slices((X, Y)).map(lambda x, y: (x, tf.numpy_function(noting, [y], tf.int64))).batch(4)
    rows = rows_of(dataset)
    assert len(rows) == N and seen == []
    rows.batch([3, 1])
    assert sorted(seen) == [1, 3]


def test_rows_of_a_cache_are_read_once():
    seen = []

    def noting(y):
        seen.append(int(y))
        return y

    dataset = slices((X, Y)).map(lambda x, y: (x, tf.numpy_function(noting, [y], tf.int64))).cache().batch(4)
    rows = rows_of(dataset)
    for order in ([3, 1], [1, 3, 2], [2]):
        x, y = rows.batch(order)
        assert y.tolist() == order and (x == X[order]).all()
    rows[2]
    assert sorted(seen) == [1, 2, 3]


@pytest.fixture
def images(tmp_path):
    """A folder with seven images of two classes."""
    for number in range(7):
        folder = tmp_path / "images" / ("cats" if number % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (6, 5, 3)).astype("uint8")
        (folder / f"{number}.png").write_bytes(tf.io.encode_png(pixels).numpy())
    return tmp_path / "images"


@pytest.fixture
def texts(tmp_path):
    """A folder with five texts of two classes."""
    for number in range(5):
        folder = tmp_path / "texts" / ("good" if number % 2 else "bad")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(f"text number {number}")
    return tmp_path / "texts"


IMAGE_SETTINGS = {
    "in order": {},
    "no labels": {"labels": None},
    "categories": {"label_mode": "categorical"},
    "binary": {"label_mode": "binary", "color_mode": "grayscale"},
    "a training part": {"validation_split": 0.3, "subset": "training", "seed": 3},
    "a validation part": {"validation_split": 0.3, "subset": "validation", "seed": 3},
    "cropped": {"crop_to_aspect_ratio": True, "interpolation": "nearest"},
}


def loaded(folder, **settings):
    return keras.utils.image_dataset_from_directory(folder, image_size=(4, 4), batch_size=3, verbose=False, **settings)


@pytest.mark.parametrize("name", IMAGE_SETTINGS)
def test_a_folder_of_images_is_read_as_keras_reads_it(images, name):
    dataset = loaded(images, shuffle=False, **IMAGE_SETTINGS[name])
    rows, start = rows_of(dataset), 0
    for expected in dataset:
        count = keras.tree.flatten(expected)[0].shape[0]
        for found, twin in zip(arrays_of(rows.batch(range(start, start + count))), arrays_of(expected), strict=True):
            assert found.dtype == twin.dtype and (found == twin).all()
        start += count
    assert start == len(rows) and rows.batch_size == 3 and rows.shuffle is False
    assert list(rows.column("file_paths")) == list(dataset.file_paths)


def test_the_file_list_of_a_shuffled_folder_names_its_rows(images):
    both = loaded(images, shuffle=True, seed=5, validation_split=0.3, subset="both")
    for dataset in (loaded(images, shuffle=True, seed=5), *both):
        rows = rows_of(dataset)
        for position, path in enumerate(rows.column("file_paths")):
            (twin,) = loaded_pixels(path)
            assert np.allclose(rows[position][0], twin, atol=1e-4)
    assert rows_of(loaded(images, seed=5)).shuffle is True and rows_of(both[1]).shuffle is False


def loaded_pixels(path):
    yield tf.image.resize(tf.io.decode_png(tf.io.read_file(path), 3), (4, 4)).numpy()


def test_the_file_list_stays_with_the_rows_through_other_steps(images):
    dataset = loaded(images, shuffle=False)
    files = list(dataset.file_paths)
    mapped = dataset.map(lambda x, y: (x / 255, y)).prefetch(1)
    assert list(rows_of(mapped).column("file_paths")) == files
    assert list(rows_of(dataset.skip(1).take(1)).column("file_paths")) == files[3:6]


@pytest.mark.parametrize("settings", [{}, {"labels": None}, {"max_length": 4}], ids=str)
def test_a_folder_of_texts_is_read_as_keras_reads_it(texts, settings):
    dataset = keras.utils.text_dataset_from_directory(texts, batch_size=2, shuffle=False, verbose=False, **settings)
    rows = rows_of(dataset)
    twin = [as_tuple(element) for element in dataset.unbatch()]
    assert [row[0] for row in rows] == [element[0].numpy() for element in twin]
    for position, path in enumerate(rows.column("file_paths")):
        assert Path(path).read_bytes()[: settings.get("max_length")] == rows[position][0]
        encode(rows[position])


def test_files_that_a_users_map_reads_are_a_column(texts):
    files = sorted(str(path) for path in texts.glob("*/*.txt"))
    dataset = tf.data.Dataset.list_files(str(texts / "*" / "*.txt"), shuffle=False)
    rows = rows_of(dataset.map(lambda path: (tf.io.read_file(path), 1)).skip(1).batch(2))
    assert rows.column("file_paths") == files[1:]
    shuffled = rows_of(tf.data.Dataset.list_files(files).map(tf.io.read_file).batch(2))
    assert shuffled.shuffle is True
    assert [row[0] for row in shuffled] == [Path(file).read_bytes() for file in shuffled.column("file_paths")]
    cut = slices(files).skip(1).take(3).skip(1).map(tf.io.read_file).batch(2)
    assert rows_of(cut).column("file_paths") == files[2:4]
    labelled = slices((files, ["a"] * len(files)))
    assert rows_of(labelled.map(lambda path, y: (tf.io.read_file(path), y)).batch(2)).column("file_paths") is None
    assert rows_of(slices(files).batch(2)).column("file_paths") is None


def test_a_column_is_a_key_of_the_inputs():
    dataset = slices(({"id": [f"row {n}" for n in range(N)], "number": Y, "pixels": X}, Y)).skip(2).batch(4)
    for data in (dataset, dataset.map(lambda x, y: (x["pixels"], y))):
        rows = rows_of(data)
        assert rows.column("id") == [f"row {n}" for n in range(2, N)]
        assert rows.column("number") == list(range(2, N)) and rows.column("other") is None
    assert rows_of(slices((X, Y)).batch(4)).column("id") is None
    assert rows_of(slices(({"a": {"id": Y}}, Y)).batch(4)).column("a") is None


class TestForgetSets:
    base = slices((X, Y)).map(double)

    def where(self, dataset, forget):
        return rows_of(dataset).positions_of(rows_of(forget))

    def test_the_same_pipeline_is_all_its_rows(self):
        dataset = self.base.shuffle(3).batch(4)
        assert self.where(dataset, dataset) == list(range(N))

    def test_rows_taken_and_skipped_are_found(self):
        training = self.base.shuffle(N).batch(4).prefetch(1)
        assert self.where(training, self.base.skip(3).take(4).batch(2)) == [3, 4, 5, 6]
        assert self.where(self.base.skip(2).batch(4), self.base.skip(3).take(2).batch(1)) == [1, 2]
        assert self.where(training, self.base.batch(2).skip(4)) == [8, 9, 10]

    def test_rows_outside_the_training_part_are_not(self):
        assert self.where(self.base.take(5).batch(4), self.base.skip(3).take(3).batch(4)) is None

    def test_rows_of_another_pipeline_are_not(self):
        for forget in (
            slices((X, Y)).map(double).batch(4),
            self.base.map(double).batch(4),
            self.base.take(2).map(double).batch(2),
        ):
            assert self.where(self.base.batch(4), forget) is None
        assert rows_of(self.base.batch(4)).positions_of(rows_of(X, Y)) is None
        assert rows_of(X, Y).positions_of(rows_of(self.base.batch(4))) is None


def test_a_forget_set_needs_no_batch_step():
    base = slices((X, Y)).map(double)
    rows = rows_of(base.shuffle(3).batch(4))
    for forget in (base.skip(3).take(2), base.skip(3).take(2).batch(5)):
        assert rows.positions_of(rows_to_forget(forget)) == [3, 4]
    other = rows_to_forget(slices((X[:2] * 2, Y[:2])))
    assert rows.positions_of(other) is None and [encode(row) for row in other] == [encode(rows[0]), encode(rows[1])]


def generated():
    yield X[0], 1


@functools.cache
def refused():
    data = slices((X, Y))
    return {
        "repeat": (data.repeat(2).batch(4), "Repeat step.*epochs= of fit counts"),
        "repeat for ever": (data.batch(4).repeat(), "Repeat step"),
        "a generator": (
            tf.data.Dataset.from_generator(generated, output_types=("float32", "int64")).batch(4),
            "FlatMap step.*pybrush_keras.Source",
        ),
        "filter": (data.filter(lambda x, y: y > 3).batch(4), "Filter step.*Filter the arrays"),
        "flat_map": (data.flat_map(lambda x, y: slices(x)).batch(4), "FlatMap step"),
        "interleave": (data.interleave(lambda x, y: slices(x)).batch(4), "Interleave step.*from_tensor_slices"),
        "shard": (data.shard(2, 0).batch(4), "Shard step.*Cut the arrays"),
        "unbatch": (data.batch(4).unbatch().batch(2), "Unbatch step.*batch step before it"),
        "concatenate": (data.concatenate(data).batch(4), "Concatenate step.*Join the arrays"),
        "padded batches": (data.padded_batch(4), "PaddedBatch step.*Pad the rows"),
        "one tensor": (tf.data.Dataset.from_tensors(X), "Tensor step"),
        "no batch": (data, r"no batch step.*\.batch\(32\)"),
        "two batch steps": (data.batch(2).batch(2), "batches batches"),
        "a fixed shuffle": (data.shuffle(4, reshuffle_each_iteration=False).batch(4), "fixes an order"),
        "take after shuffle": (data.shuffle(4).take(3).batch(4), "take and skip after shuffle"),
        "skip after shuffled batches": (data.batch(4).shuffle(4).skip(1), "take and skip after shuffle"),
        "cache after shuffle": (data.shuffle(4).cache().batch(4), "repeats the first epoch's order"),
        "a cache in a file": (
            data.cache("/nowhere/rows").batch(4),
            r"cache\('/nowhere/rows'\).*forgotten rows would stay",
        ),
        "zip of shuffled parts": (
            tf.data.Dataset.zip((slices(X).shuffle(3), slices(Y))).batch(4),
            "zipped from shuffled",
        ),
        "zip of batches": (tf.data.Dataset.zip((slices(X).batch(4), slices(Y).batch(4))), "zipped from shuffled"),
        "ragged rows": (slices(tf.ragged.constant([[1], [2, 3]])).batch(2), "RaggedTensorSpec.*to_tensor"),
        "sparse rows": (slices(tf.sparse.from_dense(X)).batch(2), "SparseTensorSpec"),
        "four parts": (slices((X, Y, Y, Y)).batch(2), "a tuple of 4"),
        "a map of batches of one size": (data.batch(4, drop_remainder=True).map(double), "drop_remainder"),
        "random numbers": (data.map(lambda x, y: (x + tf.random.normal([3]), y)).batch(4), "RandomStandardNormal"),
        "random numbers in a branch": (data.map(sometimes).batch(4), "RandomStandardNormal"),
        "random numbers of batches": (data.batch(4).map(lambda x, y: (tf.random.shuffle(x), y)), "RandomShuffle"),
        "a layer that draws": (data.map(flipped).batch(4), r"\(AssignVariableOp\).*keras.layers.RandomFlip"),
    }


def sometimes(x, y):
    return tf.cond(y > 3, lambda: x + tf.random.normal([3]), lambda: x), y


flip = keras.layers.RandomFlip()


def flipped(x, y):
    return flip(tf.reshape(x, (1, 1, 3))), y


@pytest.mark.parametrize("name", refused())
def test_pipelines_that_hide_or_change_rows_are_refused_with_what_to_write(name):
    dataset, words = refused()[name]
    with pytest.raises(UnsupportedError, match=words):
        rows_of(dataset)


def test_a_map_of_batches_that_loses_rows_is_refused_when_it_does():
    rows = rows_of(slices((X, Y)).batch(4).map(lambda x, y: (x[1:], y[1:])))
    with pytest.raises(UnsupportedError, match=r"keep one entry for each row; it made shape \(2, 3\) of 3 rows"):
        rows.batch([0, 1, 2])


def test_a_pipeline_without_rows_is_refused():
    for dataset in (slices((X, Y)).take(0).batch(4), slices((X, Y)).skip(N).batch(4), slices((X, Y)).skip(-1).batch(4)):
        with pytest.raises(ConfigurationError, match="pipeline has none"):
            rows_of(dataset)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"y": Y}, "y works with arrays alone.*Leave out y="),
        ({"sample_weight": Y}, "sample_weight works with arrays alone"),
        ({"batch_size": 4}, "batch_size works with arrays alone"),
        ({"validation_split": 0.2}, "validation_split works with arrays alone.*validation_data="),
    ],
    ids=str,
)
def test_what_belongs_into_the_pipeline_is_refused_beside_it(arguments, words):
    with pytest.raises(UnsupportedError, match=words):
        rows_of(slices((X, Y)).batch(4), **arguments)


def test_shuffle_of_fit_is_not_asked():
    for value in (True, False):
        assert rows_of(slices((X, Y)).batch(4), shuffle=value).shuffle is False


def test_tensorflow_is_not_asked_about_arrays(monkeypatch):
    monkeypatch.setattr(_private_tf, "tensorflow", None)
    rows = rows_of(X, Y)
    assert len(rows) == N and rows.batch([1])[1].tolist() == [1]
    rows[0]


def test_a_fit_reads_the_rows_through_a_data_set_of_batches():
    class Batches(keras.utils.PyDataset):
        def __init__(self, rows):
            super().__init__()
            self.rows = rows

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return self.rows.batch(range(len(self.rows))[index * 4 : index * 4 + 4])

    def fitted(data):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(data, epochs=2, verbose=0, shuffle=False)
        return model.get_weights()

    dataset = slices((X, Y)).map(double, num_parallel_calls=2).batch(4).map(lambda x, y: (x / 2, tf.cast(y, "float32")))
    for found, twin in zip(fitted(Batches(rows_of(dataset))), fitted(dataset), strict=True):
        assert (found == twin).all()
