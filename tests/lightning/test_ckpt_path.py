"""fit(ckpt_path=...) goes on from the record where the file is the record's own, and refuses every other one."""

import logging
import shutil
from pathlib import Path

import lightning
import pytest
import torch

from pybrush.errors import UnsupportedError
from pybrush.record import Record
from tests.lightning.models import KILL, Net, OtherNet, Rows
from tests.lightning.test_bitwise import assert_as_if_never_seen, assert_same_record, fitted
from tests.lightning.twin import CASES, KEY, answers, data_for, module_for, trainer_for

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
NAME = "saved"
"""A case with a last checkpoint every two steps and one for the cluster after every epoch."""


@pytest.fixture
def steps(monkeypatch):
    """Count training steps."""
    counted = []
    monkeypatch.setattr(KILL, "step", lambda: counted.append(1))
    return counted


def killed(folder, fresh_process, at=12, name=NAME):
    """Leave a fit that was killed in the second slice of the first shard; return the checkpoints it wrote."""
    module_for(CASES[name], folder / "initial.pt")
    order = {"name": name, "folder": folder, "initial": folder / "initial.pt", "gone": []}
    assert fresh_process.ask("killed", job="fit", at=at, **order)
    found = sorted(path for path in folder.rglob("*.ckpt") if "record" not in path.parts)
    assert found
    return found


def spoil(paths):
    """Make checkpoints unreadable: who reads one fails."""
    for path in paths:
        path.write_bytes(b"not a checkpoint")


@pytest.mark.parametrize("name", [NAME, "saved in the other package"])
@pytest.mark.parametrize("spoiled", [True, False])
def test_a_killed_fit_goes_on_with_last_and_reads_no_file(name, spoiled, tmp_path, fresh_process, caplog):
    found = killed(tmp_path, fresh_process, name=name)
    if spoiled:
        spoil(found)
    torch.manual_seed(4)
    trainer = trainer_for(CASES[name], tmp_path)
    module = OtherNet() if "other" in name else Net()
    with caplog.at_level(logging.INFO, "pybrush_lightning"):
        trainer.fit(module, **data_for(CASES[name]), ckpt_path="last")
    said = [message for message in caplog.messages if "the file is not read" in message]
    assert len(said) == 1 and said[0].split(" is a ")[0].endswith("slice_1/last.ckpt")
    assert_as_if_never_seen(name, tmp_path, fresh_process, answers(trainer, module), [])


@pytest.mark.parametrize("slurm", [True, False])
def test_a_killed_fit_goes_on_with_what_the_cluster_saved(slurm, tmp_path, fresh_process, monkeypatch):
    spoil(killed(tmp_path, fresh_process))
    module, trainer = Net(), trainer_for(CASES[NAME], tmp_path)
    if slurm:  # Lightning looks for it by itself there
        monkeypatch.setenv("SLURM_NTASKS", "1")
        monkeypatch.setenv("SLURM_JOB_NAME", "train")
    trainer.fit(module, **data_for(CASES[NAME]), ckpt_path=None if slurm else "hpc")
    assert_as_if_never_seen(NAME, tmp_path, fresh_process, answers(trainer, module), [])
    assert Path(trainer._checkpoint_connector._hpc_resume_path).exists()
    assert trainer.unlearn(rows=[3]).forgotten == 1


def test_every_file_that_a_killed_fit_left_lets_it_go_on(tmp_path, fresh_process):
    found = killed(tmp_path, fresh_process, at=8)
    (tmp_path / "fresh").mkdir()
    order = {"folder": tmp_path / "fresh", "initial": tmp_path / "initial.pt", "gone": []}
    assert len({path.name for path in found}) == 4  # a best and a last one, and two for the cluster
    fresh_process.ask("fit", name=NAME, **order)
    for number, path in enumerate(found):
        shutil.copytree(tmp_path / "record", tmp_path / str(number) / "record")
        kept = path.read_bytes()
        trainer = trainer_for(CASES[NAME], tmp_path / str(number))
        trainer.fit(Net(), **data_for(CASES[NAME]), ckpt_path=path)
        assert_same_record(tmp_path / str(number), tmp_path / "fresh")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kept)


def test_what_a_checkpoint_holds_is_not_loaded_into_module_optimizers_callbacks_or_loops(tmp_path, fresh_process):
    last = next(path for path in killed(tmp_path, fresh_process) if path.name == "last.ckpt")
    poisoned = torch.load(last, weights_only=False)
    for tensor in poisoned["state_dict"].values():
        tensor.fill_(7)
    poisoned["epoch"], poisoned["global_step"] = 100, 1000
    poisoned["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] = 100
    torch.save(poisoned, last)
    trainer, module = trainer_for(CASES[NAME], tmp_path), Net()
    trainer.fit(module, **data_for(CASES[NAME]), ckpt_path=last)
    assert trainer.ckpt_path is None and trainer._checkpoint_connector._loaded_checkpoint == {}
    assert_as_if_never_seen(NAME, tmp_path, fresh_process, answers(trainer, module), [])


def test_a_finished_record_has_nothing_left_to_train_and_loads_its_constituents(tmp_path, steps):
    trainer, module = fitted(NAME, tmp_path)
    first, taken = answers(trainer, module), len(steps)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for asked in ("best", "last", "hpc", trainer.checkpoint_callback.best_model_path):
        with torch.no_grad():
            module.net[0].weight.zero_()
        trainer.fit(module, **data_for(CASES[NAME]), ckpt_path=asked)
        assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())
    assert len(steps) == taken
    assert torch.equal(answers(trainer, module), first)


def test_a_killed_request_is_finished_by_a_fit_from_its_last_checkpoint(tmp_path, fresh_process):
    fitted(NAME, tmp_path)
    assert fresh_process.ask("killed", job="unlearn", at=7, name=NAME, folder=tmp_path, gone=[3, 20])
    module, trainer = Net(), trainer_for(CASES[NAME], tmp_path)
    trainer.fit(module, **data_for(CASES[NAME]), ckpt_path="last")
    assert_as_if_never_seen(NAME, tmp_path, fresh_process, answers(trainer, module), [3, 20])
    saved = [path.relative_to(tmp_path).as_posix() for path in (tmp_path / "checkpoints").rglob("*.ckpt")]
    assert len(saved) == 8 and not [path for path in saved if "_v3" in path or "-v" in path]


def test_last_without_a_file_starts_afresh(tmp_path, fresh_process):
    case = CASES["momentum"]
    module, trainer = module_for(case, tmp_path / "initial.pt"), trainer_for(case, tmp_path)
    with pytest.warns(UserWarning, match="there is no last checkpoint available"):
        trainer.fit(module, **data_for(case), ckpt_path="last")
    assert_as_if_never_seen("momentum", tmp_path, fresh_process, answers(trainer, module), [])


def refused(trainer, path):
    """Check that a fit from a file is refused and that the file is not read."""
    spoil([path])
    module = Net()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(UnsupportedError, match="no checkpoint of a stage"):
        trainer.fit(module, **data_for(CASES[NAME]), ckpt_path=path)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_checkpoint_from_elsewhere_is_refused_whatever_its_name(tmp_path):
    trainer, _ = fitted(NAME, tmp_path)
    own = Path(trainer.checkpoint_callback.last_model_path)
    for path in (tmp_path / "copy.ckpt", own.with_name("last-1.ckpt"), tmp_path / "checkpoints" / "last.ckpt"):
        shutil.copy(own, path)
        refused(trainer, path)
    (tmp_path / "other").mkdir()
    other, _ = fitted(NAME, tmp_path / "other")
    refused(other, own)


def test_a_registered_file_that_is_gone_is_refused(tmp_path):
    trainer, _ = fitted(NAME, tmp_path)
    path = Path(trainer.checkpoint_callback.last_model_path)
    path.unlink()
    with pytest.raises(UnsupportedError, match="no checkpoint of a stage"):
        trainer.fit(Net(), **data_for(CASES[NAME]), ckpt_path=path)


def test_a_file_of_a_stage_that_was_forgotten_is_refused_also_where_somebody_put_it_back(tmp_path):
    trainer, _ = fitted(NAME, tmp_path)
    record = Record.open(tmp_path / "record", KEY)
    files = {path: stage for path, stage in record.artefacts().items() if Path(path).is_file()}
    kept = {path: Path(path).read_bytes() for path in files}
    trainer.unlearn(rows=[3])
    gone = [path for path, stage in files.items() if stage not in record.ledger.wanted()]
    assert gone and not any(Path(path).exists() for path in gone)
    Path(gone[0]).parent.mkdir(parents=True, exist_ok=True)
    Path(gone[0]).write_bytes(kept[gone[0]])
    refused(trainer, Path(gone[0]))


def test_a_file_that_a_committed_request_has_yet_to_remove_is_refused(tmp_path, monkeypatch):
    trainer, _ = fitted(NAME, tmp_path)
    old = Path(trainer.checkpoint_callback.last_model_path)
    record = Record.open(tmp_path / "record", KEY)
    names = trainer.callbacks[0].naming.roster(Rows(), record.names).names
    row = next(r for r in range(44) if record.samples().shards[record.samples().find(names[[r]])[0]] == 1)

    def failing(*_):
        raise ArithmeticError

    with monkeypatch.context() as patched:
        patched.setattr("pybrush.forget.collect", failing)
        with pytest.raises(ArithmeticError):
            trainer.unlearn(rows=[row])
    assert old.exists()
    refused(trainer, old)
    trainer.fit(Net(), **data_for(CASES[NAME]))
    assert not old.exists()


def test_without_a_record_every_checkpoint_is_refused(tmp_path):
    (tmp_path / "last.ckpt").touch()
    refused(trainer_for(CASES[NAME], tmp_path), tmp_path / "last.ckpt")
    assert not (tmp_path / "record").exists()


def test_a_trainer_without_sisa_finds_its_last_checkpoint_as_ever(tmp_path):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    saving = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, save_last=True)
    trainer = lightning.Trainer(max_epochs=1, callbacks=[saving], **quiet)
    trainer.fit(Net(), **data_for(CASES[NAME]))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Net(), **data_for(CASES[NAME]), ckpt_path="last")
    assert trainer.global_step == 18


def test_an_evaluation_is_not_led_to_the_last_file_of_some_stage(tmp_path):
    trainer, module = fitted(NAME, tmp_path)
    before = answers(trainer, module)
    inputs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(Rows(seed=3).x), batch_size=16)
    with pytest.warns(UserWarning, match="there is no last checkpoint available"):
        now = torch.cat(trainer.predict(module, inputs, ckpt_path="last"))
    assert torch.equal(now, before)
