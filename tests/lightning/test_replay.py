"""Replay on Lightning: every training replays to its bits, what was forged does not, and nobody's objects change."""

import shutil
from contextlib import closing
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from pybrush import Record, Tolerance
from pybrush.errors import FingerprintError, MissingRowsError, UnsupportedError
from pybrush.record.compare import compare_states
from pybrush.record.trees import pack
from pybrush_lightning import replay
from tests.core.forging import contents, forge
from tests.lightning.models import Data, Net, Rows
from tests.lightning.twin import CASES, KEY, Case, answers, data_for, forget, module_for, trainer_for
from tests.lightning.untouched import CallsNoted, by_fit

EXACT = Tolerance(absolute=0, relative=0)


def fitted(folder, case):
    """Fit a case; return trainer and module."""
    trainer, module = trainer_for(case, folder), module_for(case, Path(folder) / "initial.pt")
    trainer.fit(module, **data_for(case))
    return trainer, module


def elsewhere(folder, case, **more):
    """Replay as a process would that has fitted nothing, with a module of other weights."""
    torch.manual_seed(99)
    trainer = trainer_for(case, folder, sisa={"shards": None, "slices": None, "seed": None})
    module = module_for(case, Path(folder) / "initial.pt") if case.source == "module" else case.module()
    return replay(trainer, model=module, **data_for(case), **more)


def cells(folder):
    with closing(Record.open(folder / "record", KEY)) as record:
        return [(stage.shard, stage.slice) for stage in record.graph()]


SHORT = (
    *("momentum", "data module", "in order", "early stop in slices", "state in many places", "saved"),
    *("two optimizers by hand in slices", "everything that watches", "true half precision", "the other package"),
    "encrypted",
)
"""Cases that every run of the tests replays; the others wait for the long one."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SHORT else [pytest.mark.long]) for name in CASES]
)
def test_every_stage_of_every_training_replays_to_the_same_bits_here_and_in_a_trainer_that_fitted_nothing(
    name, tmp_path
):
    case = CASES[name]
    trainer, _ = fitted(tmp_path, case)
    before = contents(tmp_path)
    found = replay(trainer, stages="all", tolerance=EXACT)
    assert [(stage.shard, stage.slice) for stage in found.stages] == cells(tmp_path)
    assert [(stage.outcome, stage.places, stage.environment) for stage in found.stages] == [
        ("bit_identical", (), ())
    ] * found.of
    assert elsewhere(tmp_path, case, stages="all", tolerance=EXACT).outcome == "bit_identical"
    assert contents(tmp_path) == before


def test_after_a_request_what_it_rebuilt_is_replayed(tmp_path):
    case = CASES["momentum"]
    trainer, _ = fitted(tmp_path, case)
    result = forget(case, trainer, (3,))
    found = replay(trainer)
    assert found.outcome == "bit_identical" and len(found.stages) == result.cost.stages_rebuilt < found.of


WATCHED = Case(
    callbacks=(lambda: ModelCheckpoint(save_last="link", every_n_epochs=1, save_top_k=-1),),
    trainer={"enable_checkpointing": True, "log_every_n_steps": 1},
)


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
@pytest.mark.parametrize("fresh", [False, True], ids=["fitted here", "fitted elsewhere"])
def test_trainer_module_files_and_logs_are_as_before_also_where_training_fails(fresh, fails, tmp_path, monkeypatch):
    logs, calls = CSVLogger(tmp_path, name="logs", flush_logs_every_n_steps=1), CallsNoted()
    trainer = trainer_for(WATCHED, tmp_path, logger=[logs, calls])
    module, data = module_for(WATCHED, tmp_path / "initial.pt"), data_for(WATCHED)
    trainer.fit(module, **data)
    said = answers(trainer, module)
    if fresh:
        trainer, module = trainer_for(WATCHED, tmp_path, logger=[logs, calls]), Net()
    files = contents(tmp_path)
    assert any(name.endswith(".ckpt") for name in files) and any(name.endswith("metrics.csv") for name in files)
    given = {"model": module, **data} if fresh else {}
    heard, order = list(calls.calls), list(trainer.callbacks)
    with by_fit(trainer, module, tmp_path), monkeypatch.context() as patch:
        if fails:
            patch.setattr(Net, "on_train_epoch_end", fail, raising=False)
            with pytest.raises(ArithmeticError):
                replay(trainer, stages="all", **given)
        else:
            assert replay(trainer, stages="all", **given).outcome == "bit_identical"
    assert contents(tmp_path) == files and calls.calls == heard
    assert trainer.loggers == [logs, calls] and trainer.callbacks == order
    if fresh:
        assert [callback.dirpath for callback in trainer.checkpoint_callbacks] == [None]
    else:
        assert torch.equal(answers(trainer, module), said)
    result = trainer.unlearn(rows=[3], **given)
    assert result.cost.stages_rebuilt and replay(trainer).outcome == "bit_identical"


def test_a_data_module_that_draws_moves_no_random_number_of_the_caller(tmp_path):
    case = CASES["data module"]
    trainer, module = fitted(tmp_path, case)

    def drawing():
        torch.rand(3)
        return Rows()

    torch.manual_seed(7)
    expected = torch.rand(())
    torch.manual_seed(7)
    assert replay(trainer, model=module, datamodule=Data(drawing, {"batch_size": 5, "shuffle": True})).stages
    assert torch.rand(()) == expected


def fail(self):
    raise ArithmeticError("on purpose")


# What replay notices


@pytest.fixture
def folder(tmp_path):
    fitted(tmp_path, CASES["momentum"])
    return tmp_path


def state_of(folder, shard, cell):
    with closing(Record.open(folder / "record", KEY)) as record:
        (stage,) = (stage for stage in record.graph() if (stage.shard, stage.slice) == (shard, cell))
        return record.store.load(stage.key)


def only(found, shard, cell):
    """Return the one stage that is a mismatch; all others are bit-identical, but for those that start from it."""
    (stage,) = (stage for stage in found.stages if (stage.shard, stage.slice) == (shard, cell))
    assert stage.outcome == "mismatch" == found.outcome
    return stage


def test_a_stage_that_was_trained_on_a_row_that_the_ledger_no_longer_has_is_a_mismatch(folder):
    case = CASES["momentum"]
    shutil.copytree(folder / "record", folder / "before")
    trainer = trainer_for(case, folder)
    result = trainer.unlearn(rows=[3], model=Net(), **data_for(case))
    with closing(Record.open(folder / "record", KEY)) as record:
        shard, cell = record.requests[-1].outcome["rebuilt"][-1]
    with closing(Record.open(folder / "before", KEY)) as record:  # the same stage, with the row
        state, manifest = record.store.load(record.constituents()[shard])
    forge(folder / "record", shard, cell, lambda _: state, steps=manifest.steps)
    found = elsewhere(folder, case)
    assert len(found.stages) == result.cost.stages_rebuilt
    assert {group.name: group.differing > 0 for group in only(found, shard, cell).groups} == {
        "module.buffers": True, "module.parameters": True, "optimization.optimizers": True}  # fmt: skip


def test_a_stage_that_was_trained_at_another_learning_rate_is_a_mismatch_and_such_a_module_is_refused(folder, tmp_path):
    class Faster(Net):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1001, momentum=0.9)

    case = CASES["momentum"]
    trainer = trainer_for(case, folder)
    with pytest.raises(FingerprintError, match="optimization"):
        replay(trainer, model=Faster(), **data_for(case))
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "initial.pt", other)
    module, faster = module_for(case, other / "initial.pt"), trainer_for(case, other)
    Faster.__qualname__ = "Net"
    module.__class__ = Faster
    faster.fit(module, **data_for(case))
    state, _ = state_of(other, 0, 0)
    state["optimization"]["optimizers"][0]["param_groups"][0]["lr"] = 0.1  # as if nobody had done it
    forge(folder / "record", 0, 0, lambda _: state)
    stage = only(elsewhere(folder, case, stages=[(0, 0)]), 0, 0)
    assert stage.places == () and all(group.relative > 1e-4 for group in stage.groups)


@pytest.mark.parametrize("by", [1e-5, 1e-2])
def test_changed_weights_are_told_by_how_much_they_differ(folder, by):
    def changed(state):
        state["module"]["parameters"]["net.4.bias"][0] += by
        return state

    forge(folder / "record", 1, 1, changed)
    (stage,) = elsewhere(folder, CASES["momentum"], stages=[(1, 1)], tolerance=Tolerance(1e-3, 0)).stages
    assert stage.outcome == ("mismatch" if by > 1e-3 else "within_tolerance")
    (weights,) = (group for group in stage.groups if group.name == "module.parameters")
    assert weights.differing == 1 and weights.absolute == pytest.approx(by, rel=0.1, abs=1e-8)
    assert all(group.differing == 0 for group in stage.groups if group.name != "module.parameters")


def test_momentum_that_was_dropped_is_a_mismatch_that_says_where(folder):
    def dropped(state):
        for held in state["optimization"]["optimizers"][0]["state"].values():
            held["momentum_buffer"].zero_()
        return state

    forge(folder / "record", 0, 0, dropped)
    stage = only(elsewhere(folder, CASES["momentum"], stages=[(0, 0)]), 0, 0)
    assert {group.name: group.differing for group in stage.groups} == {
        "module.buffers": 0, "module.parameters": 0, "optimization.optimizers": 6}  # fmt: skip
    forge(folder / "record", 0, 0, lambda state: {**state, "optimization": None})
    assert only(elsewhere(folder, CASES["momentum"], stages=[(0, 0)]), 0, 0).places == ("optimization",)


class Leaking(Net):
    """Keeps a count in its class, where no state holds it."""

    steps = 0

    def training_step(self, batch, index):
        Leaking.steps += 1
        return super().training_step(batch, index) * (1 + 0.01 * Leaking.steps)


def test_state_that_leaks_from_stage_to_stage_is_a_mismatch_where_the_earlier_ones_did_not_run(tmp_path):
    case = Case(Leaking)
    fitted(tmp_path, case)
    Leaking.steps = 0  # as in a new process
    found = elsewhere(tmp_path, case, stages="all")
    assert [stage.outcome for stage in found.stages] == ["bit_identical"] * found.of  # the same steps, in their order
    Leaking.steps = 0
    only(elsewhere(tmp_path, case, stages=[(1, 1)]), 1, 1)


# What is refused


def test_rows_that_are_gone_are_refused_where_a_stage_needs_them(folder):
    case = CASES["momentum"]
    before = contents(folder)
    with pytest.raises(MissingRowsError):
        replay(trainer_for(case, folder), model=Net(), **data_for(case, gone=(3, 4, 5, 6)), stages="all")
    assert contents(folder) == before


def test_a_trial_run_is_refused(folder):
    trainer = trainer_for(CASES["momentum"], folder, fast_dev_run=True)
    with pytest.raises(UnsupportedError, match="fast_dev_run"):
        replay(trainer, model=Net(), **data_for(CASES["momentum"]))


# How tensors of torch are compared


@pytest.mark.parametrize(
    "kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
)
def test_numbers_of_every_type_are_as_far_apart_as_torch_says(kind):
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(64, generator=generator, dtype=torch.float32).to(kind)
    found = stored * 1.25
    (group,) = compare_states(pack([stored]), pack([found]), EXACT).groups
    wide = torch.complex128 if kind.is_complex else torch.float64
    assert group.absolute == (stored.to(wide) - found.to(wide)).abs().max().item()
    assert group.relative == pytest.approx(group.absolute / stored.to(wide).abs().max().item())


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn])
def test_whole_numbers_and_those_of_eight_bits_must_be_equal(kind):
    one, other = torch.tensor([1.0, 0.0]).to(kind), torch.tensor([1.0, 1.0]).to(kind)
    found = compare_states(pack({"n": one}), pack({"n": other}), Tolerance(1e9, 1e9))
    assert (found.outcome, found.places) == ("mismatch", ("n",))


def test_threads_that_differ_are_named(folder):
    case, threads = CASES["momentum"], torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        (stage,) = elsewhere(folder, case).stages
    finally:
        torch.set_num_threads(threads)
    assert stage.environment == (f"stages were trained under different threads: {threads}, {threads + 1}",)
    assert stage.outcome != "mismatch"
