"""Schedulers that can be cut into slices run through the horizon in one piece; all others are refused."""

import lightning
import pytest
import torch
from torch.optim import lr_scheduler as rates

from pybrush.errors import UnsupportedError
from tests.lightning.models import Net
from tests.lightning.test_refusals import loader
from tests.lightning.twin import Case, trainer_for


class Scheduled(Net):
    def __init__(self, make, **config):
        super().__init__()
        self.make, self.config, self.read = make, config, []

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        self.read.append(self.trainer.max_epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.make(optimizer, self), **self.config}}


def cosine(epochs):
    return lambda optimizer, module: rates.CosineAnnealingLR(optimizer, epochs or module.trainer.max_epochs)


def one_cycle(optimizer, module):
    return rates.OneCycleLR(optimizer, 0.1, total_steps=2)


def warm(optimizer, module):
    return rates.CosineAnnealingWarmRestarts(optimizer, 3, eta_min=0.01)


def plateau(optimizer, module):
    return rates.ReduceLROnPlateau(optimizer)


BAD_SCHEDULERS = {
    "every step": (cosine(None), {"interval": "step"}, "steps every batch"),
    "plateau every step": (plateau, {"interval": "step", "monitor": "loss"}, "steps every batch"),
    "too short a cycle": (one_cycle, {}, "raises within 4 epochs"),
    "down to zero": (cosine(2), {}, "rate of zero"),
    "up again": (warm, {}, "raises its rate again"),
}
GOOD_SCHEDULERS = {
    "the horizon's cosine": (cosine(None), {}),
    "steps": (lambda o, _: rates.StepLR(o, 1, 0.5), {}),
    "warm-up, then down": (
        lambda o, _: rates.SequentialLR(o, [rates.LinearLR(o, 0.1, 1.0, 2), rates.ExponentialLR(o, 0.5)], [2]), {}
    ),
    "every second epoch, a cosine of two": (cosine(2), {"frequency": 2}),
    "plateau": (plateau, {"monitor": "loss"}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using")
@pytest.mark.parametrize("kind", BAD_SCHEDULERS)
def test_a_scheduler_that_cannot_be_cut_into_slices_is_refused(kind, tmp_path):
    make, config, match = BAD_SCHEDULERS[kind]
    with pytest.raises(UnsupportedError, match=f"{match}(.|\n)*slices=1"):
        trainer_for(Case(epochs=3), tmp_path).fit(Scheduled(make, **config), loader())
    assert not (tmp_path / "record" / "ledger.sqlite").exists()


@pytest.mark.filterwarnings("ignore:The epoch parameter in")
@pytest.mark.parametrize("kind", GOOD_SCHEDULERS)
def test_a_scheduler_that_can_be_cut_runs_through_the_horizon_as_in_one_piece(kind, tmp_path):
    make, config = GOOD_SCHEDULERS[kind]

    class Noting(Scheduled):
        def on_train_epoch_start(self):
            seen.append((self.trainer.current_epoch, self.trainer.optimizers[0].param_groups[0]["lr"]))

    seen = []
    trainer_for(Case(epochs=3, shards=1), tmp_path).fit(Noting(make, **config), loader())
    module = Scheduled(make, **config)
    module.trainer = lightning.Trainer(max_epochs=4, accelerator="cpu", logger=False)
    scheduler = module.configure_optimizers()["lr_scheduler"]["scheduler"]
    expected = [scheduler.optimizer.param_groups[0]["lr"]]
    for epoch in range(1, 4):
        if epoch % config.get("frequency", 1) == 0 and kind != "plateau":
            scheduler.optimizer.step()
            scheduler.step()
        expected.append(scheduler.optimizer.param_groups[0]["lr"])
    assert seen == list(enumerate(expected))


def test_with_one_slice_every_scheduler_goes(tmp_path):
    for number, (make, config, _) in enumerate(BAD_SCHEDULERS.values()):
        case = Case(epochs=3, slices=1, shards=1)
        if make not in (one_cycle, plateau):
            trainer_for(case, tmp_path / str(number)).fit(Scheduled(make, **config), loader())
