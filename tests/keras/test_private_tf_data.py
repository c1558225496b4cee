"""One canary for each private name of tf.data that PyBrush uses: it fails where a new version changed it."""

import numpy as np
import pytest

from pybrush_keras import _private_tf

tf = pytest.importorskip("tensorflow")
DATA = tf.data.Dataset.from_tensor_slices(({"a": np.arange(6)}, np.ones((6, 2), "float32")))


def test_the_class_of_a_data_set_names_its_last_step():
    steps = {
        "TensorSlice": DATA,
        "Range": tf.data.Dataset.range(3),
        "Zip": tf.data.Dataset.zip((DATA, DATA)),
        "Map": DATA.map(lambda x, y: y),
        "Batch": DATA.batch(2),
        "Shuffle": DATA.shuffle(2),
        "Prefetch": DATA.prefetch(1),
        "Cache": DATA.cache(),
        "Options": DATA.with_options(tf.data.Options()),
        "Skip": DATA.skip(1),
        "Take": DATA.take(1),
        "Repeat": DATA.repeat(),
        "Shard": DATA.shard(2, 0),
        "Filter": DATA.filter(lambda x, y: True),
        "FlatMap": DATA.flat_map(lambda x, y: DATA),
        "PaddedBatch": DATA.padded_batch(2),
        "Concatenate": DATA.concatenate(DATA),
        "Unbatch": DATA.batch(2).unbatch(),
    }
    assert {_private_tf.step_kind(dataset): dataset for dataset in steps.values()} == steps
    assert _private_tf.step_kind(DATA.map(lambda x, y: y, num_parallel_calls=2)) == "Map"
    assert _private_tf.step_kind(DATA.batch(2, num_parallel_calls=2)) == "Batch"


def test_steps_with_one_input_have_it_and_sources_do_not():
    for dataset in (DATA.map(lambda x, y: y), DATA.batch(2), DATA.shuffle(2), DATA.prefetch(1), DATA.cache()):
        assert _private_tf.step_input(dataset) is DATA
    for dataset in (DATA.with_options(tf.data.Options()), DATA.skip(1), DATA.take(1), DATA.repeat()):
        assert _private_tf.step_input(dataset) is DATA
    for dataset in (DATA, tf.data.Dataset.range(3), tf.data.Dataset.zip((DATA, DATA))):
        assert _private_tf.step_input(dataset) is None


def test_sources_hold_their_tensors_numbers_and_parts():
    numbers, ones = _private_tf.sliced_tensors(DATA)
    assert numbers.numpy().tolist() == list(range(6)) and ones.shape == (6, 2)
    assert _private_tf.counted_range(tf.data.Dataset.range(1, 20, 3)) == range(1, 20, 3)
    structure = {"a": DATA, "b": (DATA, DATA)}
    assert _private_tf.zipped(tf.data.Dataset.zip(structure)) == structure


def test_a_map_holds_a_traced_function_of_flat_tensors():
    function = _private_tf.mapped_function(DATA.map(lambda x, y: {"sum": y + 1, "a": x["a"]}))
    a, total = function(tf.constant(3, tf.int64), tf.zeros(2))
    assert a.numpy() == 3 and total.numpy().tolist() == [1, 1]
    assert "AddV2" in {node.op for node in function.graph.as_graph_def().node}


def test_steps_hold_their_settings():
    assert _private_tf.batch_settings(DATA.batch(3)) == (3, False)
    assert _private_tf.batch_settings(DATA.batch(3, drop_remainder=True, num_parallel_calls=2)) == (3, True)
    assert _private_tf.reshuffles(DATA.shuffle(2)) and not _private_tf.reshuffles(
        DATA.shuffle(2, reshuffle_each_iteration=False)
    )
    assert (_private_tf.cache_file(DATA.cache()), _private_tf.cache_file(DATA.cache("/nowhere/rows"))) == (
        "",
        "/nowhere/rows",
    )
    assert (_private_tf.step_count(DATA.skip(4)), _private_tf.step_count(DATA.take(-1))) == (4, -1)
