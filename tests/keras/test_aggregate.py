"""What predicts after a SISA fit: all constituents as one Keras model, which saves and loads as any other."""

import logging
import math
import os
import random
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

from pybrush.errors import ConfigurationError, UnsupportedError
from pybrush.plan import aggregate as plain_aggregate
from pybrush_keras import _private
from pybrush_keras.aggregate import aggregate_model, check_rows, check_target, combine
from pybrush_keras.copies import check_copyable, copied, filled
from tests.keras.aggregated import (
    CASES,
    CLASSES,
    LABELS,
    ROWS,
    Block,
    Case,
    Subclassed,
    Unrecorded,
    arrays_for,
    constituents_for,
    inputs,
    sequential,
    softmax,
    tied,
    twin,
    wide,
)

WORDS = "'logits', 'log_probs', 'probs' or 'values'"
# Keras computes means, and sums with plain numbers, in float32 under torch, also of float64.
EXACT = {"tensorflow": 1e-12, "torch": 1e-6}[keras.backend.backend()]
FEW = settings(max_examples=25, deadline=None)
ON_TENSORFLOW = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's own")


def combined(outputs, space, how):
    tensors = [ops.convert_to_tensor(output) for output in outputs]
    return ops.convert_to_numpy(combine(tensors, space, how))


def log_softmax(logits):
    return np.log(softmax(logits))


# The arithmetic


@FEW
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 7), st.integers(2, 6))
def test_logits_log_probabilities_and_probabilities_agree_with_the_plain_mean(seed, members, rows, classes):
    logits = 5 * np.random.default_rng(seed).normal(size=(members, rows, classes))
    mean = plain_aggregate(softmax(logits), "mean")
    np.testing.assert_allclose(np.exp(combined(logits, "logits", "mean")), mean, rtol=EXACT)
    np.testing.assert_allclose(np.exp(combined(log_softmax(logits), "log_probs", "mean")), mean, rtol=EXACT)
    np.testing.assert_allclose(combined(softmax(logits), "probs", "mean"), mean, rtol=EXACT)
    np.testing.assert_allclose(combined(logits, "values", "mean"), logits.mean(0), rtol=EXACT, atol=EXACT)


@FEW
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(2, 6))
def test_a_vote_counts_and_its_ties_go_to_the_lowest_class(seed, members, classes):
    logits = np.random.default_rng(seed).integers(0, 3, (members, 4, classes)).astype("float64")  # many ties
    voted = combined(logits, "logits", "vote")
    for row in range(4):
        votes = [int(max(range(classes), key=lambda c: (float(logits[m, row, c]), -c))) for m in range(members)]
        expected = [math.log((votes.count(c) + 1 / classes) / (members + 1)) for c in range(classes)]
        np.testing.assert_allclose(voted[row], expected, rtol=EXACT)
    np.testing.assert_allclose(np.exp(voted), plain_aggregate(softmax(logits), "vote"), rtol=EXACT)
    np.testing.assert_allclose(combined(softmax(logits), "probs", "vote"), np.exp(voted), rtol=EXACT)


def test_perfect_logits_have_a_loss_near_zero():
    labels = np.arange(4)
    perfect = [(100 * np.eye(4)).astype("float32")] * 3
    for space in ("logits", "log_probs"):
        loss = keras.losses.sparse_categorical_crossentropy(labels, combined(perfect, space, "mean"), from_logits=True)
        assert float(ops.max(loss)) < 1e-6
    huge = [np.array([[1e30, -1e30]], "float32"), np.array([[-1e30, 1e30]], "float32")]
    np.testing.assert_allclose(np.exp(combined(huge, "logits", "mean")), [[0.5, 0.5]])


def test_logits_may_be_masked_and_far_from_zero():
    masked = np.array([[[0.0, -np.inf, 1.0]], [[2.0, -np.inf, 0.5]]], "float32")
    np.testing.assert_allclose(np.exp(combined(masked, "logits", "mean")), softmax(masked).mean(0), rtol=1e-6)
    far = 1e4 + np.random.default_rng(3).normal(size=(3, 5, 3)).round(2)
    expected = log_softmax(far)
    np.testing.assert_allclose(
        combined(far.astype("float32"), "logits", "mean"), np.log(np.exp(expected).mean(0)), atol=2e-3
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_goes_in_and_comes_out_and_is_not_lost_between(dtype):
    logits = [ops.cast(np.random.default_rng(s).normal(size=(5, 4)), dtype) for s in range(3)]
    found = combine(logits, "logits", "mean")
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    exact = combine([ops.cast(tensor, "float32") for tensor in logits], "logits", "mean")
    assert np.array_equal(wide(found), wide(ops.cast(exact, dtype)))


# What the declared space can mean


@pytest.mark.parametrize(
    ("output", "space"),
    [
        pytest.param(softmax(inputs((3,))), "logits", id="probabilities as logits"),
        pytest.param(softmax(inputs((3,))), "log_probs", id="probabilities as logarithms"),
        pytest.param(inputs((3,)), "probs", id="logits as probabilities"),
        pytest.param(np.full((4, 3), 0.5), "probs", id="labels one by one as probabilities"),
        pytest.param(inputs((1,)), "logits", id="one column"),
        pytest.param(inputs(()), "log_probs", id="no classes"),
        pytest.param(np.arange(12).reshape(4, 3), "logits", id="whole numbers"),
        pytest.param([inputs((3,))], "logits", id="a list"),
        pytest.param({"y": inputs((3,))}, "values", id="a dictionary"),
    ],
)
def test_outputs_that_the_space_cannot_mean_are_refused_with_the_four_words(output, space):
    if hasattr(output, "shape"):
        check_rows(output, "values")
        with pytest.raises(ConfigurationError, match=WORDS):
            check_rows(ops.convert_to_tensor(output), space)
    with pytest.raises(ConfigurationError, match=WORDS):
        check_rows(output, space)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_rows_of_each_type_are_known_within_its_rounding(dtype):
    logits = np.random.default_rng(0).normal(size=(50, 10))
    check_rows(ops.cast(softmax(logits), dtype), "probs")
    check_rows(ops.cast(logits, dtype), "logits")
    check_rows(ops.cast(log_softmax(logits), dtype), "log_probs")
    check_rows(ops.cast(softmax(logits)[:0], dtype), "logits")


def test_targets_that_are_no_classes_are_refused_and_classes_are_not():
    x = inputs()
    for target in (LABELS, LABELS.astype("float32"), np.eye(3)[LABELS], np.full((ROWS, 4), 0.25), ["a", "b"]):
        for batch in ((x, target), (x, target, np.ones(ROWS)), [x, target]):
            check_target(batch, "probs")
    for batch in ((x,), x, None, (x, None)):
        check_target(batch, "logits")
    for target in (inputs(()), inputs((3,)), ops.convert_to_tensor(inputs((1,)))):
        check_target((x, target), "values")
        with pytest.raises(ConfigurationError, match=WORDS):
            check_target((x, target), "logits")


# One model


@pytest.mark.parametrize("how", ["mean", "vote"])
@pytest.mark.parametrize("name", CASES)
def test_the_aggregate_answers_as_the_constituents_one_by_one(name, how):
    case = CASES[name]
    model = case.make()
    constituents = constituents_for(model)
    found = aggregate_model(model, constituents, "logits", how, case.example).predict(case.x, verbose=0)
    expected = twin(case, constituents, how)
    tolerance = 2e-2 if name in ("half", "mixed") else 1e-5
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("space", ["log_probs", "probs", "values"])
def test_the_aggregate_answers_in_each_space(space):
    last = {"log_probs": "log_softmax", "probs": "softmax", "values": None}[space]
    case = Case(lambda: keras.Sequential([keras.Input((4,)), layers.Dense(CLASSES, activation=last)]))
    model = case.make()
    constituents = constituents_for(model)
    found = aggregate_model(model, constituents, space, "mean").predict(case.x, verbose=0)
    alone = [filled(model, arrays).predict(case.x, verbose=0) for arrays in constituents.values()]
    expected = np.mean(alone, 0) if space != "log_probs" else np.log(np.mean(np.exp(alone), 0))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_users_model_is_not_changed_and_shares_nothing(name):
    case = CASES[name]
    model = case.make()
    model.compile("adam", "mse", metrics=["mae"])
    before = [wide(variable) for variable in model.variables]
    attributes, drawn = set(vars(model)), random.getstate()
    flags = [(layer.trainable, layer.built) for layer in _private.layers_of(model)]
    aggregate = aggregate_model(model, constituents_for(model), "logits", "mean", case.example)
    assert all(np.array_equal(a, wide(variable)) for a, variable in zip(before, model.variables, strict=True))
    assert [(layer.trainable, layer.built) for layer in _private.layers_of(model)] == flags
    assert set(vars(model)) == attributes and random.getstate() == drawn
    everything = [*aggregate.variables, *aggregate.metrics_variables]
    own = {id(variable) for variable in [*model.variables, *model.metrics_variables, *model.optimizer.variables]}
    assert not own & {id(variable) for variable in everything}
    assert len(everything) == len({id(variable) for variable in everything})
    assert len(aggregate.variables) == 3 * len(model.variables)


@pytest.mark.parametrize("name", ["sequential", "subclassed", "silent", "recurrent"])
def test_constituents_run_in_inference_mode_whatever_the_aggregate_is_called_with(name):
    case = CASES[name]
    model = case.make()
    aggregate = aggregate_model(model, constituents_for(model), "logits", "mean")
    before = [wide(variable) for variable in aggregate.variables]
    quiet = wide(aggregate(case.x, training=False))
    assert np.array_equal(wide(aggregate(case.x, training=True)), quiet)
    assert np.array_equal(wide(aggregate(case.x)), quiet)
    changed = [v.path for a, v in zip(before, aggregate.variables, strict=True) if not np.array_equal(a, wide(v))]
    # Keras' LSTM draws under TensorFlow, wherever it is called, and then drops nothing out.
    assert not changed or (name == "recurrent" and all("seed_generator" in path for path in changed))
    assert aggregate.trainable_variables == []


def test_a_constituent_alone_is_a_model_of_the_users_class():
    case = CASES["subclassed"]
    model = case.make()
    arrays = arrays_for(model, 5)
    alone = filled(model, arrays)
    assert type(alone) is Subclassed and not alone.compiled and alone.trainable
    assert all(np.array_equal(wide(v), a) for v, a in zip(alone.variables, arrays, strict=True))


# Saved, loaded, exported


@pytest.mark.parametrize("name", CASES)
def test_a_saved_aggregate_is_loaded_by_keras(name, tmp_path):
    case = CASES[name]
    model = case.make()
    aggregate = aggregate_model(model, constituents_for(model), "logits", "mean", case.example)
    expected = aggregate.predict(case.x, verbose=0)
    keras.saving.save_model(aggregate, tmp_path / "model.keras")
    if not case.loads:
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            keras.saving.load_model(tmp_path / "model.keras", custom_objects=case.custom)
        return
    safe = name != "lambda"  # as Keras asks
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects=case.custom, safe_mode=safe)
    assert np.array_equal(loaded.predict(case.x, verbose=0), expected)
    aggregate.save_weights(tmp_path / "model.weights.h5")
    other = aggregate_model(model, constituents_for(model, (7, 8, 9)), "logits", "mean", case.example)
    other.load_weights(tmp_path / "model.weights.h5")
    assert np.array_equal(other.predict(case.x, verbose=0), expected)


ALONE = """
import sys
import keras, numpy as np
assert not [path for path in sys.path if "pybrush" in path]
model = keras.saving.load_model("model.keras")
found = model.predict(np.load("x.npy"), verbose=0)
assert not [name for name in sys.modules if name.startswith("pybrush")]
assert np.array_equal(found, np.load("expected.npy"))
print(model.evaluate(np.load("x.npy"), np.load("y.npy"), verbose=0, return_dict=True)["accuracy"])
"""


@pytest.mark.parametrize("how", ["mean", "vote"])
def test_inputs_may_have_the_names_that_keras_gives_to_operations(how, tmp_path):
    given = {name: keras.Input((3,), name=name) for name in ("mean", "stack", "cast", "log", "argmax", "subtract")}
    model = keras.Model(given, layers.Dense(CLASSES)(layers.concatenate(list(given.values()))))
    whole = aggregate_model(model, {0: model.get_weights(), 1: model.get_weights()}, "logits", how)
    whole.save(tmp_path / "whole.keras")
    loaded = keras.saving.load_model(tmp_path / "whole.keras")
    batch = {name: np.random.default_rng(place).normal(size=(4, 3)) for place, name in enumerate(given)}
    np.testing.assert_array_equal(loaded.predict(batch, verbose=0), whole.predict(batch, verbose=0))
    np.testing.assert_array_equal(
        whole.predict(batch, verbose=0).argmax(-1), model.predict(batch, verbose=0).argmax(-1)
    )


def test_a_saved_aggregate_is_loaded_where_this_library_is_not_installed(tmp_path):
    model, x = sequential(), inputs()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    aggregate = aggregate_model(model, constituents_for(model), "logits", "vote")
    expected = aggregate.predict(x, verbose=0)
    for name, array in (("x", x), ("y", LABELS), ("expected", expected)):
        np.save(tmp_path / f"{name}.npy", array)
    aggregate.save(tmp_path / "model.keras")
    # Without the site's path files, one of which may install this checkout.
    site = next(path for path in sys.path if path.endswith("site-packages"))
    run = f"import sys; sys.path.append({site!r})\n{ALONE}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", run], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(np.mean(expected.argmax(-1) == LABELS))


@ON_TENSORFLOW
@pytest.mark.parametrize("how", ["mean", "vote"])
@pytest.mark.parametrize("name", ["sequential", "two inputs", "subclassed"])
def test_an_aggregate_is_exported_as_a_saved_model(name, how, tmp_path):
    import tensorflow

    case = CASES[name]
    model = case.make()
    aggregate = aggregate_model(model, constituents_for(model), "logits", how)
    aggregate.export(tmp_path / "exported", verbose=False)
    loaded = tensorflow.saved_model.load(tmp_path / "exported")
    found = loaded.serve(case.x)
    np.testing.assert_allclose(found.numpy(), aggregate.predict(case.x, verbose=0), rtol=1e-6)


# Preprocessing


@ON_TENSORFLOW
def test_a_vocabulary_goes_with_each_constituent(tmp_path):
    def make():
        words = layers.StringLookup(output_mode="multi_hot")
        words.adapt(np.array(["red", "green", "blue", "red", "red", "green"]))
        return keras.Sequential([keras.Input((2,), dtype="string"), words, layers.Dense(CLASSES)])

    x = np.array([["red", "blue"], ["green", "grey"], ["blue", "blue"]])
    case = Case(make, __import__("tensorflow").constant(x))
    model = make()
    constituents = constituents_for(model)
    aggregate = aggregate_model(model, constituents, "logits", "mean")
    np.testing.assert_allclose(wide(aggregate(case.x)), twin(case, constituents), rtol=1e-5)
    aggregate.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert np.array_equal(wide(loaded(case.x)), wide(aggregate(case.x)))


def test_what_a_layer_derives_from_its_variables_is_derived_anew():
    """In a process that never adapted the layer, its mean comes from the record."""
    case = CASES["normalized"]
    adapted = case.make()
    arrays = [wide(variable).astype(keras.backend.standardize_dtype(variable.dtype)) for variable in adapted.variables]
    never = keras.Sequential([keras.Input((4,)), layers.Normalization(), layers.Dense(CLASSES)])
    np.testing.assert_allclose(wide(filled(never, arrays)(case.x)), wide(adapted(case.x)), rtol=1e-6)


class Remembers(layers.Layer):
    """Saves a plain number beside its variables."""

    factor = 1.0

    def call(self, x):
        return self.factor * x

    def save_own_variables(self, store):
        store["factor"] = np.array(self.factor)

    def load_own_variables(self, store):
        self.factor = float(np.asarray(store["factor"]))


def test_what_a_layer_of_the_users_own_saves_beside_variables_goes_with_each_constituent():
    model = keras.Sequential([keras.Input((4,)), Remembers(), layers.Dense(CLASSES)])
    model.layers[0].factor = 3.0
    alone = filled(model, arrays_for(model, 1))
    assert alone.layers[0].factor == 3.0


# Evaluated


def test_an_aggregate_is_evaluated_with_the_losses_and_metrics_of_the_model():
    model, x = sequential(), inputs()
    measured = [keras.metrics.SparseCategoricalAccuracy(name="hits"), "accuracy"]
    weighted = [keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="weighted")]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=measured, weighted_metrics=weighted, steps_per_execution=1)
    model.fit(x, LABELS, epochs=1, verbose=0)
    aggregate = aggregate_model(model, constituents_for(model), "logits", "mean")
    weights = np.linspace(0.5, 2, ROWS)
    found = aggregate.evaluate(x, LABELS, sample_weight=weights, verbose=0, return_dict=True)
    answered = aggregate.predict(x, verbose=0)
    each = -answered[np.arange(ROWS), LABELS]
    assert found["loss"] == pytest.approx(float(np.sum(each * weights) / ROWS), rel=1e-5)
    assert found["weighted"] == pytest.approx(float(np.sum(each * weights) / weights.sum()), rel=1e-5)
    assert found["hits"] == found["accuracy"] == pytest.approx(np.mean(answered.argmax(-1) == LABELS))
    assert not {id(v) for v in aggregate.metrics_variables} & {id(v) for v in model.metrics_variables}
    assert [variable.path for variable in aggregate.optimizer.variables if "momentum" in variable.path] == []
    assert "hits" in model.evaluate(x, LABELS, verbose=0, return_dict=True)


def test_losses_of_an_output_by_name_and_of_the_users_own_are_taken_along():
    def own(true, predicted):
        return ops.mean(ops.abs(true - predicted), axis=-1)

    a = keras.Input((4,))
    model = keras.Model(a, layers.Dense(CLASSES, name="out")(a))
    model.compile("adam", {"out": own}, metrics={"out": ["mse", own]})
    aggregate = aggregate_model(model, constituents_for(model), "values", "mean")
    y = inputs((3,), seed=9)
    found = aggregate.evaluate(inputs(), y, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(np.abs(aggregate.predict(inputs(), verbose=0) - y).mean(), rel=1e-5)


def test_a_model_that_is_not_compiled_has_an_aggregate_that_is_not():
    model = sequential()
    assert not aggregate_model(model, constituents_for(model), "logits", "mean").compiled


def test_a_metric_that_cannot_be_copied_is_told(caplog):
    class Uncopyable(keras.metrics.Mean):
        def __init__(self, needed):
            super().__init__()

    model = sequential()
    model.compile("adam", "mse", metrics=[Uncopyable(3)])
    with caplog.at_level(logging.WARNING, "pybrush_keras"):
        aggregate = aggregate_model(model, constituents_for(model), "logits", "mean")
    assert "get_config" in caplog.text and not aggregate.compiled
    assert aggregate.predict(inputs(), verbose=0).shape == (ROWS, CLASSES)


# Refused


def test_a_class_whose_arguments_keras_cannot_record_is_refused_before_it_is_trained():
    class Forgetful(Subclassed):
        """Says less than it was made with."""

        def get_config(self):
            return {}

    class Defaulted(keras.Model):
        """Keras records the default in place of what it was made with."""

        def __init__(self, activation="relu"):
            super().__init__()
            self.head = layers.Dense(CLASSES, activation=activation)

        def call(self, x):
            return self.head(x)

    for model in (Defaulted("tanh"), keras.Sequential([keras.Input((4,)), Defaulted("tanh")])):
        with pytest.raises(UnsupportedError, match=r"does not record activation of Defaulted.*get_config"):
            check_copyable(model)
    model = Unrecorded([Block(5), layers.Dense(CLASSES)])
    with pytest.raises(UnsupportedError, match="get_config"):
        check_copyable(model)
    model(inputs())
    with pytest.raises(UnsupportedError, match="get_config"):
        check_copyable(model)
    model = Forgetful(width=7)
    model(inputs())
    with pytest.raises(UnsupportedError, match=r"other variables in dense.*get_config"):
        check_copyable(model)


def test_a_model_that_keras_itself_would_save_wrongly_is_refused():
    with pytest.raises(UnsupportedError, match="8 variables, not 6"):
        check_copyable(tied())


@pytest.mark.parametrize("name", CASES)
def test_a_model_that_can_be_copied_is_not_refused_and_not_changed(name):
    case = CASES[name]
    model = case.make()
    before = [wide(variable) for variable in model.variables]
    check_copyable(model, case.example)
    assert all(np.array_equal(a, wide(variable)) for a, variable in zip(before, model.variables, strict=True))


def test_a_model_that_is_not_built_is_checked_as_far_as_it_goes_and_has_no_constituents():
    for model in (keras.Sequential([layers.Dense(3)]), Subclassed()):
        check_copyable(model)
        assert not model.built
        with pytest.raises(ConfigurationError, match="Call it once on a batch"):
            aggregate_model(model, {0: []}, "logits", "mean")


def test_constituents_of_another_model_are_refused():
    model = sequential()
    arrays = arrays_for(model, 0)
    other = [array.astype("float64") if array.dtype == "float32" else array for array in arrays]
    for wrong in (arrays[:-1], [*arrays, arrays[0]], [*arrays[1:], arrays[0]], other):
        with pytest.raises(ConfigurationError, match="build it as it was trained"):
            aggregate_model(model, {0: wrong}, "logits", "mean")


def test_a_model_of_several_outputs_has_no_aggregate():
    a = keras.Input((4,))
    model = keras.Model(a, [layers.Dense(2)(a), layers.Dense(3)(a)])
    with pytest.raises(ConfigurationError, match="one tensor"):
        aggregate_model(model, constituents_for(model), "values", "mean")


def test_copies_in_one_process_have_no_names_in_common_with_each_other_where_keras_wants_none():
    model = CASES["subclassed"].make()
    aggregate = aggregate_model(model, constituents_for(model), "logits", "mean")
    assert {"constituent_0", "constituent_2", "constituent_3"} <= {layer.name for layer in aggregate.layers}
    again = copied(aggregate)
    assert len(again.variables) == len(aggregate.variables)
