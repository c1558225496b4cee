"""Modules and data that ask more of a trainer: several optimizers stepped by hand, validation data that changes."""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.lightning.models import KILL, Data, Net, Rows, Validated


class Adversaries(lightning.LightningModule):
    """A generator and a critic, each with an optimizer, and a scheduler stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6))
        self.critic = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.critic(x)

    def training_step(self, batch, index):
        KILL.step()
        x, y = batch
        make, judge = self.optimizers()
        self.toggle_optimizer(make)
        fake = self.generator(torch.randn(len(x), 4))
        self.step_by(make, self.critic(fake).logsumexp(1).mean())
        self.untoggle_optimizer(make)
        self.toggle_optimizer(judge)
        loss = nn.functional.cross_entropy(self(x), y) - self.critic(fake.detach()).logsumexp(1).mean()
        self.step_by(judge, loss)
        self.untoggle_optimizer(judge)
        self.log("loss", loss)
        if self.trainer.is_last_batch and self.trainer.global_step % 4 == 0:
            self.lr_schedulers().step()

    def step_by(self, optimizer, loss):
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def predict_step(self, batch, index):
        return self(batch[0])

    def configure_optimizers(self):
        make = torch.optim.Adam(self.generator.parameters(), lr=0.02)
        judge = torch.optim.SGD(self.critic.parameters(), lr=0.1, momentum=0.9)
        return [make, judge], [torch.optim.lr_scheduler.ExponentialLR(judge, 0.7)]


class ValidatedByEpoch(Validated):
    """Steered by validation data that the data module changes."""


class Changing(Data):
    """Gives other validation rows in each epoch in which it is asked."""

    def val_dataloader(self):
        epoch = self.trainer.current_epoch
        torch.rand(epoch + 1)  # a loading that draws must not move the training's random numbers
        held_out = Rows(rows=12, seed=9 + epoch)
        return DataLoader(TensorDataset(held_out.x, held_out.y), batch_size=5)


def compiled_net():
    """Return a module whose forward runs compiled, without a compiler that rounds in a way of its own."""
    module = Net()
    module.compile(backend="eager")
    return module
