"""Where the checkpoints of each stage lie, what the callbacks say of them afterwards, and what requests leave."""

import re
from dataclasses import replace
from pathlib import Path

import lightning
import pytest
import pytorch_lightning as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from pybrush.record import Record
from tests import reference
from tests.lightning.models import Net, OtherNet, Rows, Validated
from tests.lightning.test_bitwise import assert_same_record
from tests.lightning.test_erasure import in_shard
from tests.lightning.twin import CASES, KEY, Case, data_for, forget, module_for, trainer_for

PLACES = [f"shard_{shard}/slice_{cell}" for shard in (0, 1) for cell in (0, 1)]
CASE = replace(CASES["ids"], epochs=3)
"""Two epochs a stage, two shards of two slices."""


def fitted(folder, *callbacks, case=CASE, **changes):
    trainer = trainer_for(case, folder, enable_checkpointing=True, callbacks=list(callbacks), **changes)
    module = module_for(case, folder / "initial.pt")
    trainer.fit(module, **data_for(case))
    return trainer, module


def files(folder):
    """Return the path of each file, link and empty folder below a folder."""
    leaves = (path for path in folder.rglob("*") if not path.is_dir() or not any(path.iterdir()))
    return sorted(path.relative_to(folder).as_posix() for path in leaves)


def in_places(folder):
    """Return the names in the folder of each stage."""
    return {place: sorted(path.name for path in (folder / place).iterdir()) for place in PLACES}


def stages(folder):
    """Return place -> key of the stages that a record holds."""
    return {f"shard_{s.shard}/slice_{s.slice}": s.key for s in Record.open(folder / "record", KEY).graph()}


def state_of(folder, key):
    module = Record.open(folder / "record", KEY).store.load(key)[0]["module"]
    return module["parameters"] | module["buffers"]


def same(weights, others):
    return all(torch.equal(others[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("package", [lightning, pl], ids=lambda package: package.__name__)
def test_each_stage_has_its_own_best_and_last_files_under_plain_names(package, tmp_path):
    case = replace(CASE, package=package, module=Net if package is lightning else OtherNet)
    kind = ModelCheckpoint if package is lightning else pl.callbacks.ModelCheckpoint
    saving = kind(tmp_path / "saved", filename="best", save_last=True)
    fitted(tmp_path, saving, case=case)
    assert in_places(tmp_path / "saved") == {place: ["best.ckpt", "last.ckpt"] for place in PLACES}
    assert len(files(tmp_path / "saved")) == 8
    for place, key in stages(tmp_path).items():
        last = torch.load(tmp_path / "saved" / place / "last.ckpt", weights_only=False)["state_dict"]
        assert same(last, state_of(tmp_path, key))


def test_top_k_is_counted_in_each_stage_by_itself_and_no_name_has_a_version(tmp_path):
    saving = ModelCheckpoint(tmp_path / "saved", monitor="loss", save_top_k=2, every_n_train_steps=1, save_last=True)
    fitted(tmp_path, saving)
    kept = in_places(tmp_path / "saved")
    assert all(len(names) == 3 and "last.ckpt" in names for names in kept.values())
    assert not [name for names in kept.values() for name in names if re.search(r"-v\d", name)]


def test_callbacks_with_different_monitors_share_a_folder_and_say_what_each_of_them_kept(tmp_path):
    class Falling(Validated):
        def training_step(self, batch, index):
            self.log("step_number", float(self.global_step))
            return super().training_step(batch, index)

    case = replace(CASE, module=Falling, validation=True)
    kinds = [
        ModelCheckpoint(tmp_path / "saved", "low-{epoch}", monitor="val_loss", save_top_k=-1),
        ModelCheckpoint(
            tmp_path / "saved", "high-{step_number:.0f}", monitor="step_number", mode="max", save_last=True
        ),
        ModelCheckpoint(tmp_path / "saved", "step-{step}", every_n_train_steps=3, save_weights_only=True),
    ]
    trainer, module = fitted(tmp_path, *kinds, case=case)
    steps = trainer.global_step
    held = tmp_path / "saved" / "shard_1" / "slice_1"
    low, high, every = kinds
    assert [callback.dirpath for callback in kinds] == [str(tmp_path / "saved")] * 3
    assert sorted(low.best_k_models) == [str(held / f"low-epoch={epoch}.ckpt") for epoch in (2, 3)]
    scores = [float(score) for score in low.best_k_models.values()]
    assert float(low.best_model_score) == float(low.best_k_models[low.best_model_path]) == min(scores)
    assert float(low.kth_value) == float(low.best_k_models[low.kth_best_model_path]) == max(scores)
    assert Path(high.best_model_path) == held / f"high-step_number={steps - 1}.ckpt"
    assert float(high.best_model_score) == float(high.current_score) == steps - 1
    assert Path(high.last_model_path) == held / "last.ckpt"
    assert Path(every.best_model_path) == held / f"step-step={steps - steps % 3}.ckpt"
    assert every.best_model_score is None and every.best_k_models == {}
    assert not {"optimizer_states", "callbacks"} & torch.load(every.best_model_path).keys()
    last = torch.load(high.last_model_path, weights_only=False)
    assert same(last["state_dict"], module.state_dict())
    assert {state["dirpath"] for name, state in last["callbacks"].items() if "Checkpoint" in name} == {high.dirpath}


def test_another_process_says_the_same_of_the_held_constituent(tmp_path):
    def make():
        return ModelCheckpoint(tmp_path / "saved", monitor="loss", save_top_k=2, save_last=True, every_n_train_steps=2)

    names = ["best_model_path", "last_model_path", "kth_best_model_path", "dirpath"]
    scores = ["best_model_score", "kth_value", "current_score"]
    first, later = make(), make()
    fitted(tmp_path, first)
    with pytest.warns(UserWarning, match="exists and is not empty"):
        fitted(tmp_path, later)
    assert [getattr(first, name) for name in names] == [getattr(later, name) for name in names]
    assert [getattr(first, name).item() for name in scores] == [getattr(later, name).item() for name in scores]
    assert first.best_k_models == later.best_k_models and len(first.best_k_models) == 2


def test_the_best_file_of_each_shard_is_found_in_the_manifest_of_its_constituent(tmp_path):
    fitted(tmp_path, ModelCheckpoint(tmp_path / "saved", monitor="loss"))
    record = Record.open(tmp_path / "record", KEY)
    for shard, key in record.constituents().items():
        (kept,) = record.store.manifest(key).notes["checkpoints"].values()
        assert Path(kept["best"]).parent == tmp_path / "saved" / f"shard_{shard}" / "slice_1"
        assert record.artefacts()[kept["best"]] == key


class SavesByHand(lightning.Callback):
    """Saves where the first ModelCheckpoint does, and elsewhere."""

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(Path(trainer.checkpoint_callback.dirpath) / "own.ckpt")
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "elsewhere" / f"{trainer.current_epoch}.ckpt")


@pytest.mark.parametrize("last", [True, "link"])
def test_after_a_request_the_folders_of_replaced_stages_are_gone_and_the_others_untouched(last, tmp_path):
    saving = ModelCheckpoint(tmp_path / "saved", save_last=last)
    case = replace(CASE, callbacks=(SavesByHand,))
    trainer, module = fitted(tmp_path, saving, case=case)
    (tmp_path / "saved" / "shard_1" / "slice_0" / "copied-by-the-user.pt").write_bytes(b"a state")
    before, old = in_places(tmp_path / "saved"), stages(tmp_path)
    result = forget(case, trainer, [in_shard(1)])
    now = stages(tmp_path)
    assert [place for place in PLACES if old[place] != now[place]] == PLACES[2:]
    assert in_places_of(now, tmp_path).keys() == set(PLACES)
    assert {place: names for place, names in before.items() if place in PLACES[:2]} == {
        place: sorted(path.name for path in (tmp_path / "saved" / place).iterdir()) for place in PLACES[:2]
    }
    rebuilt = in_places_of(now, tmp_path)
    assert {folder.name for folder in (tmp_path / "saved" / "shard_1").iterdir()} == {"slice_0_v2", "slice_1_v2"}
    assert [path.name for path in rebuilt["shard_1/slice_0"]][1:] == ["last.ckpt", "own.ckpt"]
    assert str(tmp_path / "saved" / "shard_1" / "slice_0") in result.audit["artefacts_unlinked"]
    assert not [name for name in files(tmp_path / "saved") if "-v" in name or (tmp_path / "saved" / name).is_dir()]
    assert Path(saving.best_model_path).parent == tmp_path / "saved" / "shard_1" / "slice_1_v2"
    assert same(torch.load(saving.last_model_path, weights_only=False)["state_dict"], module.state_dict())
    assert Record.open(tmp_path / "record", KEY).verify()
    forget(case, trainer, [next(row for row in range(44) if row != in_shard(1) and row in rows_of(1))])
    assert {folder.name for folder in (tmp_path / "saved" / "shard_1").iterdir()} <= {
        "slice_0",
        "slice_1",
        "slice_0_v2",
    }
    assert Path(saving.best_model_path).parent == tmp_path / "saved" / "shard_1" / "slice_1"


def in_places_of(now, folder):
    """Return place -> files in the folder that is registered for the stage there."""
    held = Record.open(folder / "record", KEY).artefacts()
    saved = [Path(path) for path in held if Path(path).is_dir()]
    return {place: sorted(path.iterdir()) for place, key in now.items() for path in saved if held[str(path)] == key}


def rows_of(shard):
    names = (reference.pseudonym(KEY, b"s:" + name.encode()) for name in Rows().names)
    return {row for row, name in enumerate(names) if reference.cell(name, 2, 2)[0] == shard}


def test_a_fit_that_was_killed_writes_again_what_it_wrote(tmp_path, fresh_process):
    case, calm = CASES["saved"], tmp_path / "calm"
    calm.mkdir()
    module_for(case, tmp_path / "initial.pt")
    order = {"name": "saved", "initial": tmp_path / "initial.pt", "gone": []}
    assert fresh_process.ask("killed", job="fit", at=12, folder=tmp_path, **order)
    left = files(tmp_path / "checkpoints")
    assert any(name.startswith("shard_0/slice_1") for name in left) and not any("shard_1" in name for name in left)
    with pytest.warns(UserWarning, match="exists and is not empty"):
        trainer_for(case, tmp_path).fit(module_for(case, tmp_path / "initial.pt"), **data_for(case))
    fresh_process.ask("fit", folder=calm, **order)
    assert files(tmp_path / "checkpoints") == files(calm / "checkpoints")
    assert_same_record(tmp_path, calm)


def test_files_of_another_record_in_the_same_folder_stay_with_it(tmp_path):
    trainers = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        saving = ModelCheckpoint(tmp_path / "saved", filename="best")
        if name == "two":
            with pytest.warns(UserWarning, match="exists and is not empty"):
                trainers.append(fitted(folder, saving)[0])
        else:
            trainers.append(fitted(folder, saving)[0])
    assert len(files(tmp_path / "saved")) == 8
    forget(CASE, trainers[0], [in_shard(1)])
    left = files(tmp_path / "saved")
    assert [name for name in left if "_v2/" in name] == [f"{place}_v2/best.ckpt" for place in PLACES]
    assert len(left) == 8


def test_after_an_error_the_callbacks_have_their_folder_and_their_methods_back(tmp_path):
    class Failing(Net):
        def training_step(self, batch, index):
            if self.current_epoch == 3:
                raise ArithmeticError
            return super().training_step(batch, index)

    saving = ModelCheckpoint(tmp_path / "saved")
    with pytest.raises(ArithmeticError):
        fitted(tmp_path, saving, case=Case(Failing, epochs=3))
    assert saving.dirpath == str(tmp_path / "saved") and "state_dict" not in vars(saving)
    assert saving.best_model_path == ""


def test_a_save_that_waits_for_a_validation_does_not_wait_into_the_next_stage(tmp_path):
    saving = ModelCheckpoint(tmp_path / "saved")
    seen = []

    class Waiting(lightning.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(saving._defer_save_until_validation)

        def on_train_end(self, trainer, pl_module):
            saving._defer_save_until_validation = True

    case = replace(CASE, callbacks=(Waiting,))
    fitted(tmp_path, saving, case=case)
    assert seen == [False] * 4


class FailingLater(Net):
    """Fails in the second slice of a request."""

    fails = False

    def training_step(self, batch, index):
        if self.current_epoch == 3 and FailingLater.fails:
            raise ArithmeticError
        return super().training_step(batch, index)


def test_a_request_that_fails_leaves_the_files_of_the_model_that_stays(tmp_path):
    saving = ModelCheckpoint(tmp_path / "saved", filename="model", enable_version_counter=False, save_last=True)
    trainer, module = fitted(tmp_path, saving, case=replace(CASE, module=FailingLater))
    names, best, held = files(tmp_path / "saved"), saving.best_model_path, Path(saving.best_model_path).read_bytes()
    FailingLater.fails = True
    try:
        with pytest.raises(ArithmeticError):
            forget(CASE, trainer, [in_shard(1)])
    finally:
        FailingLater.fails = False
    assert saving.best_model_path == best and Path(best).read_bytes() == held
    assert set(names) < set(files(tmp_path / "saved"))
    forget(CASE, trainer, [in_shard(1)])
    assert not Path(best).exists() and len(files(tmp_path / "saved")) == len(names)
    assert {Path(name).name for name in files(tmp_path / "saved")} == {"model.ckpt", "last.ckpt"}
    assert not [name for name in files(tmp_path / "saved") if "_v3" in name]
    assert same(torch.load(saving.best_model_path, weights_only=False)["state_dict"], module.state_dict())
