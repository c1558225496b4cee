"""16-mixed on the processor: a gradient scaler starts fresh in each shard and goes on with each slice."""

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from pybrush.record import Record
from pybrush_lightning import _private
from tests.lightning.models import Net, Rows
from tests.lightning.test_bitwise import assert_same_record
from tests.lightning.twin import KEY, Case, answers, data_for, trainer_for

SCALE = 2.0**22
"""So large that the first gradients overflow, their steps are skipped, and the scale is halved until they fit."""


CASE = Case(Net, epochs=4, sisa={"ids": "names"})


def trainer_with_scaler(folder, **changes):
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=4)
    return trainer_for(CASE, folder, plugins=[MixedPrecision("16-mixed", "cpu", scaler)], **changes)


def fit(folder, gone=()):
    torch.manual_seed(1)
    trainer, module = trainer_with_scaler(folder), Net()
    trainer.fit(module, **data_for(CASE, gone))
    return trainer, module


def scales(folder):
    """Return scale and growth of each stage, by shard and slice."""
    record = Record.open(folder / "record", KEY)
    held = {(stage.shard, stage.slice): record.store.load(stage.key)[0] for stage in record.graph()}
    return {place: state["optimization"]["precision"] for place, state in held.items()}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_scaler_starts_fresh_in_each_shard(elsewhere, tmp_path):
    trainer, module = fit(tmp_path)
    found = scales(tmp_path)
    assert all(state["scale"] < SCALE for state in found.values()) and len({s["scale"] for s in found.values()}) > 2
    initial = Record.open(tmp_path / "record", KEY).store.load("initial")[0]["optimization"]["precision"]
    assert (initial["scale"], initial["_growth_tracker"]) == (SCALE, 0)
    if elsewhere:
        trainer, module = trainer_with_scaler(tmp_path), Net()
        trainer.precision_plugin.scaler.load_state_dict({**initial, "scale": 64.0, "growth_interval": 9})
    names = [Rows().names[row] for row in (3, 20)]
    result = trainer.unlearn(ids=names, model=module, **data_for(CASE))
    assert result.cost.stages_rebuilt > 1
    other, fresh = fit(tmp_path / "fresh", (3, 20))
    assert torch.equal(answers(trainer, module), answers(other, fresh))
    assert_same_record(tmp_path, tmp_path / "fresh")


def test_an_error_with_unscaled_gradients_leaves_nothing_in_the_scaler(tmp_path):
    class Failing(Net):
        failing = True

        def on_before_optimizer_step(self, optimizer):
            if Failing.failing and self.trainer.global_step == 3:
                raise RuntimeError("enough")

    torch.manual_seed(1)
    trainer, module = trainer_with_scaler(tmp_path), Failing()
    with pytest.raises(RuntimeError, match="enough"):
        trainer.fit(module, **data_for(CASE))
    scaler = trainer.precision_plugin.scaler
    assert len(scaler._per_optimizer_states) > 0
    _private.set_up_optimizers(trainer)  # as every stage begins
    assert len(scaler._per_optimizer_states) == 0
    Failing.failing = False
    trainer.fit(module, **data_for(CASE))
    assert len(scales(tmp_path)) == 4
