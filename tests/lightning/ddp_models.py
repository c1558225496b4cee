"""What the scripts of the DDP tests train; every class can be pickled for spawned processes."""

import os

import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn

from tests.lightning.models import Drawing, Net, Noisy, OtherNet, Pushing, Remembering, Rows

__all__ = ["Drawing", "Net", "Noisy", "OtherNet", "Remembering", "Rows"]


SEEN = []
"""[epoch, first input of each row, a random number] of every training step of this process."""


def callbacks(names, folder):
    """Return the callbacks that a plan names."""
    kinds = {
        "checkpoint": lambda: ModelCheckpoint(dirpath=folder / "checkpoints", save_last=True),
        "pushing": Pushing,
        "stopping": lambda: EarlyStopping("val_loss", patience=1, min_delta=0.03),
    }
    return [kinds[name]() for name in names]


class Fewer(Rows):
    """A row less on other ranks than the first."""

    def __init__(self, gone=()):
        super().__init__(gone=(*gone, 7) if int(os.environ.get("LOCAL_RANK", 0)) else gone)


ENDS = []
"""What the weights sum to on this rank at the end of each stage, before any rank is told another's."""


class Split(Rows):
    """Rows in an order of each rank's own, as an unseeded random_split would leave them."""

    def __getitem__(self, row):
        return super().__getitem__((row + int(os.environ.get("LOCAL_RANK", 0))) % len(self))


class Watched(Net):
    """Draws its rate, validates, notes on each rank which rows it was given and what it drew, and falls where told.

    FALLS names a rank and an epoch, such as "1:2". A buffer counts validations, the sanity check's too.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("validations", torch.zeros(()), persistent=False)

    def training_step(self, batch, index):
        epoch, rank = self.trainer.current_epoch, self.trainer.global_rank
        if os.environ.get("FALLS") in (f"{rank}:{epoch}", f"all:{epoch}"):
            raise RuntimeError("this batch cannot be trained on")
        SEEN.append([epoch, batch[0][:, 0].tolist(), float(torch.rand(()))])
        return super().training_step(batch, index)

    def on_train_end(self):
        ENDS.append([float(parameter.detach().double().sum()) for parameter in self.parameters()])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1 + 0.01 * float(torch.rand(())), momentum=0.9)

    def validation_step(self, batch, index):
        self.validations += 1
        x, y = batch
        loss = nn.functional.cross_entropy(nn.functional.dropout(self(x), 0.1), y)
        self.log("val_loss", loss, batch_size=len(y), sync_dist=True)


class Plateau(Watched):
    """Lowers its rate by what all ranks together see of the validation data."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class Tally:
    """An object that no state can hold."""

    def __init__(self):
        self.batches = 0


class Counting(Net):
    """Changes, on rank 0 alone, an attribute that no stage can store."""

    def __init__(self):
        super().__init__()
        self.tally = Tally()

    def training_step(self, batch, index):
        self.tally.batches += int(self.trainer.is_global_zero)
        return super().training_step(batch, index)
