"""Files that are written with a model, by ModelCheckpoint, BackupAndRestore or save: each goes with its stage."""

import keras
import numpy as np
import pytest

from pybrush_keras import SISA
from tests.keras import nets
from tests.keras.twin import KEY

FIT = {"epochs": 2, "batch_size": 16, "verbose": 0}


def fitted(folder, *callbacks, **changes):
    """Fit a small model; return it and its SISA."""
    settings = {"shards": 2, "slices": 2, "ids": "position", "key": KEY, "seed": 5} | changes
    sisa = SISA(record=folder / "record", **settings)
    keras.utils.set_random_seed(1)
    model = nets.plain("sgd", normed=False, dropped=False)
    model.fit(**nets.table(), callbacks=[*callbacks, sisa], validation_data=validation(), **FIT | {"epochs": 4})
    return model, sisa


def validation():
    return tuple(nets.table(10, seed=9).values())


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def stages(name):
    return [f"shard_{shard}/slice_{cell}/{name}" for shard in (0, 1) for cell in (0, 1)]


KINDS = {
    "whole models": ("model.keras", {}),
    "weights alone": ("model.weights.h5", {"save_weights_only": True}),
    "the best": ("best.keras", {"save_best_only": True, "monitor": "val_loss"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_each_stage_lies_in_a_folder_of_its_own(kind, tmp_path):
    name, settings = KINDS[kind]
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "saved" / name, **settings)
    model, sisa = fitted(tmp_path, checkpoint)
    assert files(tmp_path / "saved") == stages(name)
    assert checkpoint.filepath == str(tmp_path / "saved" / name)
    last = tmp_path / "saved" / stages(name)[-1]
    other = nets.plain("sgd", normed=False, dropped=False)
    other.load_weights(last)
    if kind != "the best":
        assert same(other.get_weights(), model.get_weights())
    held = sisa.recorded().artefacts()
    keys = {stage.key for stage in sisa.recorded().graph()}
    assert {held[str(path.resolve())] for path in (tmp_path / "saved").glob("shard_*/slice_*")} == keys


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_names_with_fields_are_filled_in_and_each_shard_keeps_its_own(tmp_path):
    name = "{epoch:02d}-{val_loss:.2f}-{shard}{slice}.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "saved" / name)
    _, sisa = fitted(tmp_path, checkpoint)
    found = files(tmp_path / "saved")
    count = sisa.recorded().plan.epochs_per_slice
    assert len(found) == 4 * count
    assert [f"{f.split('/')[0][-1]}{f.split('/')[1][-1]}" for f in found] == [f[-8:-6] for f in found]


def test_the_best_of_one_shard_is_no_bar_for_another(tmp_path):
    """Each stage begins with no best value, so each saves at least once, whatever the others reached."""
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "saved" / "best.keras", save_best_only=True)
    fitted(tmp_path, checkpoint)
    before = checkpoint.best
    assert files(tmp_path / "saved") == stages("best.keras")
    assert before == keras.callbacks.ModelCheckpoint(tmp_path / "other.keras", save_best_only=True).best


def test_a_request_removes_the_files_of_the_stages_that_it_rebuilds(tmp_path):
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "saved" / "model.keras")
    _, sisa = fitted(tmp_path, checkpoint)
    record = sisa.recorded()
    before = {stage.key: (stage.shard, stage.slice) for stage in record.graph()}
    result = sisa.unlearn(rows=[3], verbose=0)
    after = {stage.key for stage in record.graph()}
    gone = [cell for key, cell in before.items() if key not in after]
    assert len(gone) == result.cost.stages_rebuilt
    for shard, cell in gone:
        assert not (tmp_path / "saved" / f"shard_{shard}" / f"slice_{cell}").exists()
        assert (tmp_path / "saved" / f"shard_{shard}" / f"slice_{cell}_v2" / "model.keras").is_file()
    assert len(files(tmp_path / "saved")) == 4
    record.verify()


def test_a_backup_of_one_stage_is_not_restored_in_the_next(tmp_path):
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    model, sisa = fitted(tmp_path, backup)
    plain = tmp_path / "plain"
    plain.mkdir()
    other, _ = fitted(plain)
    assert same(model.get_weights(), other.get_weights())
    folders = {path.parent.relative_to(tmp_path / "backup") for path in (tmp_path / "backup").rglob("*.h5")}
    assert sorted(map(str, folders)) == [name.rstrip("/") for name in stages("")]
    sisa.unlearn(rows=[3], verbose=0)
    sisa.recorded().verify()


@pytest.mark.parametrize("way", ["save", "save_weights", "export"])
def test_what_the_user_saves_after_a_fit_goes_with_its_stage(way, tmp_path):
    model, sisa = fitted(tmp_path, shards=1, slices=1)
    path = tmp_path / {"save": "model.keras", "save_weights": "model.weights.h5", "export": "exported"}[way]
    arguments = {"verbose": False} if way == "export" else {}
    if way == "export" and nets.BACKEND == "torch":
        arguments["format"] = "onnx"
        pytest.skip("needs onnx, which is not installed")
    getattr(model, way)(path, **arguments)
    (stage,) = sisa.recorded().graph()
    assert sisa.recorded().artefacts()[str(path.resolve())] == stage.key
    assert path.exists()
    sisa.unlearn(rows=[3], guarantee="exact", verbose=0)
    assert not path.exists()


def test_what_was_saved_before_a_fit_is_the_users_own(tmp_path):
    keras.utils.set_random_seed(1)
    model = nets.plain("sgd", normed=False, dropped=False)
    model.save_weights(tmp_path / "initial.weights.h5")
    sisa = SISA(record=tmp_path / "record", ids="position", key=KEY, seed=5)
    model.fit(**nets.table(), callbacks=[sisa], **FIT)
    sisa.unlearn(rows=[3], guarantee="exact", verbose=0)
    assert (tmp_path / "initial.weights.h5").is_file() and sisa.recorded().artefacts() == {}
