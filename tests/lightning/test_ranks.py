"""What ranks are told and given, and which ways of training on several are refused: no second process is needed."""

import pickle

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy

from pybrush.errors import UnsupportedError
from pybrush.learner import Horizon
from pybrush.plan.order import Seeds
from pybrush_lightning import SISA
from pybrush_lightning.stage_data import Share, StageBatchSampler, loader_plan
from pybrush_lightning.supported import check_training
from tests import reference
from tests.lightning.models import Net
from tests.lightning.twin import CASES, KEY, data_for

# Batches


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_every_row_of_an_epoch_in_equally_many_batches(world, size, drop_last):
    for rows in range(2, 4 * size + 2):
        order = [7 * row + 1 for row in np.random.default_rng(rows).permutation(rows).tolist()]
        each = max(-(-rows // world), 2 if size > 1 else 1)
        for rank in range(world):
            # Row by row: the i-th of this rank is the (rank + world i)-th of the epoch, which begins again at its end.
            own = [order[(rank + world * i) % rows] for i in range(each)]
            sampler = sampler_over(order, rank, world, size, drop_last)
            found = list(sampler)
            assert found == reference.batches(own, size, drop_last)
            assert len(sampler) == len(found)
            assert size == 1 or min(map(len, found)) > 1
        if not drop_last:
            shared = [list(sampler_over(order, rank, world, size, False)) for rank in range(world)]
            assert {row for batches in shared for batch in batches for row in batch} == set(order)


def sampler_over(order, rank, world, size, drop_last):
    data = torch.utils.data.DataLoader(range(1000), batch_size=size, drop_last=drop_last, shuffle=True)
    rows, horizon = (lambda _: np.array(order)), Horizon(0, 0, 1, 0, 1)
    return StageBatchSampler(loader_plan(data), rows, horizon, Seeds(1, 0, 0), Share(rank, world), torch.Generator())


def test_workers_draw_other_numbers_on_each_rank_and_one_process_draws_as_ever():
    drawn = []
    for share in (Share(), Share(0, 2), Share(1, 2)):
        loader, generator = torch.utils.data.DataLoader(range(9), batch_size=2, shuffle=True), torch.Generator()
        sampler = StageBatchSampler(
            loader_plan(loader), lambda _: np.arange(9), Horizon(0, 0, 1, 0, 1), Seeds(1, 0, 0), share, generator
        )
        iter(sampler)
        drawn.append(generator.initial_seed())
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[2] == reference.seed_of(1, 0, 0, 0, "workers", 1) & (2**63 - 1)


# Settings


class Own(SISA):
    """A callback that a user derived."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.extra = "kept"


def test_what_spawned_processes_are_told_of_a_callback_is_its_settings(tmp_path):
    sisa = Own(record=tmp_path / "record", shards=2, key=KEY, ids="names")
    trainer = lightning.Trainer(
        callbacks=[sisa], max_epochs=1, logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    trainer.fit(Net(), **data_for(CASES["ids"]))
    told = pickle.loads(pickle.dumps(sisa))
    names = ("shards", "slices", "record", "naming", "how", "space", "key", "seed", "extra")
    assert [getattr(told, name) for name in names] == [getattr(sisa, name) for name in names]
    assert sisa.given.module is not None and told.given.module is None
    assert told.recorded().constituents() == sisa.recorded().constituents()


# Refusals


class Mine(DDPStrategy):
    pass


REFUSED = {
    "a strategy of one's own": ({"strategy": Mine()}, "strategy=Mine with 2 processes: use strategy='ddp'"),
    "batch norm over ranks": ({"strategy": "ddp", "sync_batchnorm": True}, "sync_batchnorm with strategy='ddp'"),
    "a hook": ({"strategy": DDPStrategy(ddp_comm_hook=len)}, "ddp_comm_hook with strategy='ddp'"),
    "averaging": ({"strategy": DDPStrategy(model_averaging_period=2)}, "model_averaging_period with strategy='ddp'"),
    "one process": ({"strategy": "ddp", "devices": 1}, "strategy=DDPStrategy: leave strategy= out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_averages_in_another_way_or_elsewhere_is_refused_by_name(name):
    settings, match = REFUSED[name]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "max_epochs": 1}
    trainer = lightning.Trainer(**(quiet | {"accelerator": "cpu", "devices": 2} | settings))
    with pytest.raises(UnsupportedError, match=match):
        check_training(trainer, Net(), 1)


def test_sharded_models_are_refused_by_name():
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "max_epochs": 1}
    trainer = lightning.Trainer(**quiet, accelerator="cpu", devices=1)
    trainer._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(UnsupportedError, match="strategy=FSDPStrategy"):
        check_training(trainer, Net(), 1)
