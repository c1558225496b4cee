"""Data sets, modules and callbacks that the Lightning tests train: each one has a trap that SISA must not step into."""

import os
import signal

import lightning
import pytorch_lightning as pl
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, Dataset

ROWS = 44


class Killer:
    """Kills this process in a training step, where one is set."""

    def __init__(self):
        self.at = None

    def step(self):
        if self.at is not None:
            self.at -= 1
            if self.at == 0:
                os.kill(os.getpid(), signal.SIGKILL)


KILL = Killer()


class Rows(Dataset):
    """Pairs of inputs and labels with an id and an owner each; deleted rows are not there at all."""

    equal = ()
    """Positions whose rows all equal that of the first."""

    def __init__(self, gone=(), rows=ROWS, classes=3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(rows, 6, generator=generator), torch.randint(0, classes, (rows,), generator=generator)
        for row in self.equal[1:]:
            x[row], y[row] = x[self.equal[0]].clone(), y[self.equal[0]]
        keep = [row for row in range(rows) if row not in set(gone)]
        self.x, self.y = x[keep].clone(), y[keep].clone()
        self.names = [f"sample-number-{row:06d}" for row in keep]
        self.owners = [f"owner-number-{row % 11:06d}" for row in keep]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        return self.x[row], self.y[row]


class Repeated(Rows):
    """Three rows are equal."""

    equal = (2, 7, 30)


class Table(Rows):
    """Rows with a day each, of which some labels were fixed."""

    def __init__(self, gone=(), fixed=(2, 13)):
        super().__init__(gone)
        kept = [row for row in range(ROWS) if row not in set(gone)]
        for position, row in enumerate(kept):
            self.y[position] = (self.y[position] + (row in fixed)) % 3
        self.days = [f"2026-{1 + row // 28:02d}-{1 + row % 28:02d}" for row in kept]


class Noisy(Rows):
    """Inputs that differ at each reading."""

    def __getitem__(self, row):
        return self.x[row] + 0.1 * torch.randn(6), self.y[row]


class Body:
    """BatchNorm and dropout; what the cases vary is set by arguments."""

    def __init__(self, optimizer="momentum", scheduler=None):
        super().__init__()
        self.optimizer, self.scheduler = optimizer, scheduler
        self.net = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        KILL.step()
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def test_step(self, batch, index):
        x, y = batch
        self.log("test_loss", nn.functional.cross_entropy(self(x), y), batch_size=len(y))

    def predict_step(self, batch, index):
        return self(batch[0])

    def configure_optimizers(self):
        kinds = {
            "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
            "adam": lambda p: torch.optim.Adam(p, lr=0.02),
        }
        optimizer = kinds[self.optimizer](self.parameters())
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}

    def make_scheduler(self, optimizer):
        kinds = torch.optim.lr_scheduler
        if self.scheduler == "step":
            return kinds.StepLR(optimizer, step_size=1, gamma=0.5)
        if self.scheduler == "cosine":
            return kinds.CosineAnnealingLR(optimizer, T_max=self.trainer.max_epochs)
        if self.scheduler == "onecycle":
            steps = self.trainer.estimated_stepping_batches
            return {"scheduler": kinds.OneCycleLR(optimizer, 0.1, total_steps=steps), "interval": "step"}
        plateau = kinds.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return {"scheduler": plateau, "monitor": "val_loss"}


class Net(Body, lightning.LightningModule):
    """For `lightning`."""


class OtherNet(Body, pl.LightningModule):
    """For `pytorch_lightning`."""


class Validated(Net):
    """Validates with dropout left on, so that validation draws random numbers, and counts its validations."""

    def validation_step(self, batch, index):
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(nn.functional.dropout(self(x), 0.1), y), batch_size=len(y))


class Remembering(Net):
    """Keeps state outside of its state_dict, and lets it steer training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("trace", torch.zeros(3), persistent=False)
        self.seen, self.notes = 0, {1: [0.0], "parts": (1, None)}
        self.kept = torch.zeros(2)
        self.all_weights = [self.net[0].weight, self.net[4].weight]
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3)

    def training_step(self, batch, index):
        x, y = batch
        logits = self(x)
        with torch.no_grad():
            self.trace = 0.9 * self.trace + logits.mean(0)
            self.kept += 0.01
            self.accuracy.update(logits, y)
        self.seen += len(y)
        self.notes[1].append(float(self.trace[0]))
        memory = self.trace.abs().sum() + self.accuracy.compute() + self.kept.sum() + 0.01 * self.seen
        return nn.functional.cross_entropy(logits, y) * (1 + 0.1 * memory) + 1e-3 * sum(
            weight.norm() for weight in self.all_weights
        )


class Adapted(Net):
    """A frozen backbone with a trained low-rank addition, and a teacher that follows without gradients."""

    def __init__(self, width=64):
        super().__init__("adam")
        self.net = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.net.requires_grad_(False)
        self.down, self.up = nn.Linear(width, 2, bias=False), nn.Linear(2, 3)
        self.teacher = nn.Linear(2, 3).requires_grad_(False)

    def forward(self, x):
        low = self.down(self.net(x))
        return self.up(low) + 0.1 * self.teacher(low)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            self.teacher.weight.lerp_(self.up.weight, 0.1)

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.02)


class Drawing(Net):
    """Draws random numbers where no epoch has begun yet."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05 + 0.05 * float(torch.rand(())))

    def on_train_start(self):
        self.factor = 1 + 0.1 * float(torch.randn(()))

    def training_step(self, batch, index):
        return self.factor * super().training_step(batch, index)


class Tally:
    """An object that no state can hold."""

    batches = 0


class Pushing(lightning.Callback):
    """A user's callback whose own attributes steer training, and which answers for another in its state_dict."""

    def __init__(self):
        self.count, self.history, self.tally = 0, [], Tally()

    def state_dict(self):
        return {"batches": self.tally.batches}

    def load_state_dict(self, state):
        self.tally.batches = state["batches"]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.count += 1
        self.tally.batches += 1
        self.history.append(float(pl_module.net[4].bias[0].detach()))
        with torch.no_grad():
            pl_module.net[4].bias += 1e-3 * self.count + 1e-3 * self.tally.batches + 1e-3 * self.history[0]


class SavesForTheCluster(lightning.Callback):
    """Saves after each epoch where a cluster's signal makes Lightning save."""

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(trainer._checkpoint_connector.hpc_save_path(trainer.default_root_dir))


class Data(lightning.LightningDataModule):
    """Rows made in setup, in a process that has seen nothing else."""

    def __init__(self, make, loader):
        super().__init__()
        self.make, self.loader = make, loader

    def setup(self, stage):
        self.rows = self.make()

    def train_dataloader(self):
        return DataLoader(self.rows, **self.loader)


class WithLoader(Net):
    """Brings its own training data."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def train_dataloader(self):
        return DataLoader(self.make(), batch_size=5, shuffle=True)
