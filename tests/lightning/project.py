"""A project that trains by LightningCLI, of either package; as a script it is that project's command line.

python project.py lightning unlearn --config config.yaml --forget_file ids.txt
"""

import sys

import lightning
import lightning.pytorch.cli
import pytorch_lightning
import pytorch_lightning.cli
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pybrush_lightning.cli import UnlearnCLI, Unlearning


class Named(Dataset):
    """Rows with a name and an owner each; deleted rows are not there at all."""

    def __init__(self, gone):
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(48, 4, generator=generator), torch.randint(0, 3, (48,), generator=generator)
        keep = [row for row in range(48) if row not in set(gone)]
        self.x, self.y = x[keep], y[keep]
        self.names = [f"sample-number-{row:06d}" for row in keep]
        self.owners = [f"owner-number-{row % 12:06d}" for row in keep]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        return self.x[row], self.y[row]


class Body:
    """A perceptron that keeps its hyperparameters."""

    def __init__(self, hidden: int = 8):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch, index):
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean(), batch_size=len(batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Rows:
    """A data module over them."""

    def __init__(self, gone: list[int] | None = None, batch_size: int = 8):
        super().__init__()
        self.gone, self.batch_size = gone or [], batch_size

    def setup(self, stage):
        self.rows = Named(self.gone)

    def train_dataloader(self):
        return DataLoader(self.rows, self.batch_size, shuffle=True)

    def test_dataloader(self):
        return DataLoader(self.rows, self.batch_size)


class Net(Body, lightning.LightningModule):
    """For `lightning`."""


class Data(Rows, lightning.LightningDataModule):
    """For `lightning`."""


class OtherNet(Body, pytorch_lightning.LightningModule):
    """For `pytorch_lightning`."""


class OtherData(Rows, pytorch_lightning.LightningDataModule):
    """For `pytorch_lightning`."""


class OtherCLI(Unlearning, pytorch_lightning.cli.LightningCLI):
    """What a user of `pytorch_lightning` writes."""


COMMANDS = {
    "plain": (lightning.pytorch.cli.LightningCLI, Net, Data),
    "lightning": (UnlearnCLI, Net, Data),
    "plain other": (pytorch_lightning.cli.LightningCLI, OtherNet, OtherData),
    "pytorch_lightning": (OtherCLI, OtherNet, OtherData),
}


def command(name, **more):
    """Run the command line of a project."""
    kind, module, data = COMMANDS[name]
    return kind(module, data, **more)


if __name__ == "__main__":
    command(sys.argv.pop(1))
