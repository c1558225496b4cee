"""The exported model: the same answers, nothing else of the record in it, and gone when its samples are forgotten."""

import json
from contextlib import closing

import keras
import numpy as np
import pytest
from keras import layers
from safetensors.numpy import load_file

from pybrush import Record
from pybrush.errors import ConfigurationError, CorruptRecordError, RecordError, UnsupportedError
from pybrush.plan import aggregate as plain_aggregate
from pybrush_keras import SISA, load_export
from tests import reference

KEY = bytes(range(32))
ROWS = 30
X = np.random.default_rng(0).normal(size=(ROWS, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, ROWS)
IDS = [f"sample-number-{place:06d}" for place in range(ROWS)]


def made(dtype="float32"):
    model = keras.Sequential([
        *(keras.Input((4,)), layers.Dense(5, activation="relu", dtype=dtype), layers.BatchNormalization()),
        *(layers.Dropout(0.2), layers.Dense(3, dtype=dtype)),
    ])  # fmt: skip
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def fitted(folder, model, shards=2, **settings):
    """Fit a model; return an opened record, its SISA and the model."""
    sisa = SISA(shards=shards, slices=1, record=folder / "record", key=KEY, seed=3, ids=IDS, **settings)
    model.fit(X, Y, epochs=1, batch_size=8, verbose=0, callbacks=[sisa])
    return Record.open(folder / "record", KEY), sisa, model


def values(tensor):
    return keras.ops.convert_to_numpy(tensor)


def softmax(logits):
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits, -1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_export_answers_bit_for_bit_as_the_record(dtype, tmp_path):
    record, _, model = fitted(tmp_path, made(dtype))
    with closing(record):
        assert record.export(tmp_path / "out") == tmp_path / "out"
        deployed = record.aggregate(model)
    fresh = made(dtype)
    before = [values(variable) for variable in fresh.variables]
    loaded = load_export(tmp_path / "out", fresh)
    assert np.array_equal(values(loaded(X)), values(deployed(X)))
    assert all(np.array_equal(a, values(v)) for a, v in zip(before, fresh.variables, strict=True))
    assert set(loaded.evaluate(X, Y, verbose=0, return_dict=True)) == {"loss", "accuracy"}


def test_the_only_constituent_comes_as_the_models_own_kind(tmp_path):
    record, _, model = fitted(tmp_path, made(), shards=1)
    with closing(record):
        record.export(tmp_path / "out")
    loaded = load_export(tmp_path / "out", made())
    assert type(loaded) is keras.Sequential and loaded is not model
    assert np.array_equal(values(loaded(X)), values(model(X)))
    assert loaded.evaluate(X, Y, verbose=0) == pytest.approx(model.evaluate(X, Y, verbose=0))


def test_an_export_is_loaded_without_pybrush_too(tmp_path):
    record, _, model = fitted(tmp_path, made(), aggregate="vote")
    with closing(record):
        record.export(tmp_path / "out")
        expected = values(record.aggregate(model)(X))
    described = json.loads((tmp_path / "out/model.json").read_text())
    said = []
    for entry in described["constituents"]:
        arrays, member = load_file(tmp_path / "out" / entry["file"]), made()
        for variable, name in zip(member.variables, sorted(arrays), strict=True):
            assert name.endswith(f"/{variable.name}")
            variable.assign(arrays[name])
        said.append(softmax(values(member(X))))
    assert (described["outputs"], described["class"]) == ("logits", "Sequential")
    np.testing.assert_allclose(np.log(plain_aggregate(said, described["aggregate"])), expected, rtol=1e-5)


def test_an_export_holds_weights_and_a_description_and_nothing_else_of_the_record(tmp_path):
    record, _, _ = fitted(tmp_path, made(), subjects=[f"owner-number-{place % 7}" for place in range(ROWS)])
    with closing(record):
        place = record.export(tmp_path / "out")
        key_id, digest = record.plan.key_id, record.plan.semantic_digest
    files = {path.name: path for path in place.iterdir()}
    assert set(files) == {"model.json", "constituent_0.safetensors", "constituent_1.safetensors"}
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o600}
    names = [reference.pseudonym(KEY, b"s:" + name.encode()) for name in IDS]
    secrets = [KEY, *names, *(name.hex().encode() for name in names), b"sample-number", b"owner-number"]
    secrets += [KEY.hex().encode(), key_id.encode(), digest.encode(), str(tmp_path).encode(), b"momentum"]
    assert not [secret for secret in secrets for path in files.values() if secret in path.read_bytes()]


def test_a_request_removes_what_held_the_forgotten_and_the_export_says_so_until_it_is_made_again(tmp_path):
    record, sisa, model = fitted(tmp_path, made())
    record.export(tmp_path / "out")
    before = record.constituents()
    record.close()
    result = sisa.unlearn(ids=[IDS[3]])
    record = Record.open(tmp_path / "record", KEY)
    (changed,) = [shard for shard, key in record.constituents().items() if before[shard] != key]
    gone = tmp_path / "out" / f"constituent_{changed}.safetensors"
    assert str(gone) in result.audit["artefacts_unlinked"] and not gone.exists()
    with pytest.raises(RecordError, match=f"{gone.name} is not there: a request has removed it"):
        load_export(tmp_path / "out", made())
    record.export(tmp_path / "out", overwrite=True)
    loaded = load_export(tmp_path / "out", made())
    assert np.array_equal(values(loaded(X)), values(record.aggregate(model)(X)))
    assert record.verify().artefacts == 2
    record.close()


def test_a_damaged_export_is_refused_and_so_is_another_model(tmp_path):
    record, _, _ = fitted(tmp_path, made())
    with closing(record):
        place = record.export(tmp_path / "out")
    other = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    with pytest.raises(ConfigurationError, match="build it as it was trained"):
        load_export(place, other)
    weights, described = place / "constituent_1.safetensors", place / "model.json"
    whole, text = weights.read_bytes(), described.read_text()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptRecordError, match=r"constituent_1.safetensors is not the file"):
        load_export(place, made())
    weights.write_bytes(whole)
    described.write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(UnsupportedError, match=r"model\.json"):
        load_export(place, made())
