"""What the scripts of the DDP tests train; every class can be pickled for spawned processes."""

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from tests.lightning.models import Net, Noisy, Remembering, Rows

__all__ = ["Net", "Noisy", "Remembering", "Rows"]


def callbacks(plan, folder):
    """Return the callbacks that a plan names."""
    return [ModelCheckpoint(dirpath=folder / "checkpoints", save_last=True)] if plan.get("checkpoints") else []


class Watching(Net):
    """Notes, on each rank, which rows it was given and what it drew."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, index):
        self.seen.append([self.trainer.current_epoch, batch[0][:, 0].tolist(), float(torch.rand(()))])
        return super().training_step(batch, index)


class Falls(Net):
    """Raises in a training step, on the rank that FALLS names or on both."""

    def training_step(self, batch, index):
        if self.trainer.current_epoch == 1:
            raise RuntimeError("this batch cannot be trained on")
        return super().training_step(batch, index)


class Marks(Net):
    """Changes, on rank 0 alone, an attribute that no stage can store."""

    def __init__(self):
        super().__init__()
        self.tally = Tally()

    def training_step(self, batch, index):
        self.tally.batches += int(self.trainer.is_global_zero)
        return super().training_step(batch, index)


class Tally:
    """An object that no state can hold."""

    def __init__(self):
        self.batches = 0


class Plain(Net):
    """No BatchNorm and no dropout, so that gradients of halves average to those of a plain loop."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Validated(Net):
    """Validates, and logs the mean over all ranks."""

    def validation_step(self, batch, index):
        x, y = batch
        loss = nn.functional.cross_entropy(nn.functional.dropout(self(x), 0.1), y)
        self.log("val_loss", loss, batch_size=len(y), sync_dist=True)
