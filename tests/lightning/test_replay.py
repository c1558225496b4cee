"""Replay on Lightning: every training replays to its bits, what was forged does not, and nobody's objects change."""

from contextlib import closing
from pathlib import Path

import pytest
import torch

from pybrush import Record, Tolerance
from pybrush_lightning import replay
from tests.core.forging import contents
from tests.lightning.twin import CASES, KEY, LONG, data_for, forget, module_for, trainer_for

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


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in CASES]
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
