"""Runs that only try something out leave every record as it is: overfit_batches, and a Tuner at work."""

import pytest
import torch
from lightning.pytorch.tuner import Tuner

from pybrush.errors import UnsupportedError
from tests.lightning.models import Net
from tests.lightning.test_bitwise import assert_same_record, fitted
from tests.lightning.test_refusals import loader
from tests.lightning.twin import CASES, Case, trainer_for


class Tunable(Net):
    """Has what a Tuner looks for."""

    def __init__(self, lr=0.05, batch_size=4):
        super().__init__()
        self.lr, self.batch_size = lr, batch_size

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def train_dataloader(self):
        return loader(batch_size=self.batch_size)


def everything_in(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


TRIALS = {
    "lr_find": lambda trainer, module: Tuner(trainer).lr_find(module, num_training=12),
    "scale_batch_size": lambda trainer, module: Tuner(trainer).scale_batch_size(module, max_trials=2, max_val=16),
    "overfit_batches": lambda trainer, module: trainer.fit(module),
}


@pytest.mark.filterwarnings("ignore:.*overfit", "ignore:.*bottleneck", "ignore:Checkpoint directory")
@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_run_touches_no_record_and_says_so(name, tmp_path, caplog):
    settings = {"overfit_batches": 2} if name == "overfit_batches" else {}
    case = Case(trainer=settings | {"enable_checkpointing": True})
    trainer, module = trainer_for(case, tmp_path), Tunable()
    TRIALS[name](trainer, module)
    assert not (tmp_path / "record").exists()
    assert [record.message for record in caplog.records if "no record" in record.message] != []
    trainer, module = trainer_for(Case(trainer={"enable_checkpointing": True}), tmp_path), Tunable()
    trainer.fit(module)
    before = everything_in(tmp_path / "record")
    vars(trainer).update(settings)
    TRIALS[name](trainer, module)
    assert everything_in(tmp_path / "record") == before


@pytest.mark.filterwarnings("ignore:.*bottleneck")
@pytest.mark.parametrize("steps", [-1, 9])
def test_a_fit_after_a_tuner_is_that_of_a_trainer_that_tuned_nothing(steps, tmp_path):
    case, trainers = Case(trainer={"max_steps": steps}), []
    module = Tunable()
    initial = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for tunes in (True, False):
        trainer = trainer_for(case, tmp_path / str(tunes))
        if tunes:
            Tuner(trainer).lr_find(module, num_training=12)
            found = module.lr
        fresh = module if tunes else Tunable(found)
        fresh.load_state_dict(initial)
        trainer.fit(fresh)
        trainer.unlearn(rows=[3])
        trainers.append(trainer)
    assert_same_record(tmp_path / "True", tmp_path / "False")


@pytest.mark.filterwarnings("ignore:.*overfit_batches")
def test_a_request_is_refused_by_a_trainer_that_overfits(tmp_path):
    fitted("momentum", tmp_path)
    trainer = trainer_for(CASES["momentum"], tmp_path, overfit_batches=1)
    with pytest.raises(UnsupportedError, match="overfit_batches"):
        trainer.unlearn(rows=[3], model=Net(), train_dataloaders=loader())
