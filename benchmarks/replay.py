"""How far a replay is off, by what differs: threads, one row more, another learning rate. Figures: docs/guarantees.md.

    python benchmarks/replay.py

Trains small networks on 900 images of digits, in one shard, and prints for each difference the largest distance of a
weight over the largest weight of its tensor. Leaves nothing behind; `--epochs` shortens a trial run.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from pybrush import Record, Tolerance
from pybrush.record.compare import Packed, compare_states
from pybrush.record.trees import pack
from pybrush_lightning import SISA, replay
from pybrush_lightning.datasets import DigitsData

KEY, SEED, ROWS = bytes(range(32)), 3, 900


class Net(L.LightningModule):
    """A small convolutional network, with or without BatchNorm."""

    def __init__(self, optimizer: str, batch_norm: bool, faster: float = 1.0) -> None:
        super().__init__()
        self.optimizer, self.faster = optimizer, faster
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32) if batch_norm else nn.Identity(), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 256), nn.ReLU(),
            nn.Linear(256, 10),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> Any:
        """Return logits, shape (b, 10)."""
        return self.net(images)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return the mean cross-entropy of a batch."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        """Return SGD with momentum, or Adam."""
        if self.optimizer == "SGD":
            return torch.optim.SGD(self.parameters(), lr=0.05 * self.faster, momentum=0.9)
        return torch.optim.Adam(self.parameters(), lr=1e-3 * self.faster)


def fitted(folder: Path, module: Net, data: Any, epochs: int) -> tuple[L.Trainer, Packed]:
    """Train a record of one stage; return the trainer and the stage's state."""
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=[SISA(record=folder, key=KEY, seed=SEED)], accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size=32, shuffle=True))
    record = Record.open(folder, KEY)
    state = record.store.load(record.constituents()[0])[0]
    record.close()
    return trainer, pack(state)


def distances(optimizer: str, batch_norm: bool, epochs: int, folder: Path) -> Iterator[tuple[str, float]]:
    """Return what differs, and how far the weights are off."""
    images = DigitsData().train
    data = TensorDataset(images.images, images.labels)
    torch.manual_seed(SEED)
    start = Net(optimizer, batch_norm).state_dict()

    def module(faster: float = 1.0) -> Net:
        made = Net(optimizer, batch_norm, faster)
        made.load_state_dict(start)
        return made

    rows = Subset(data, range(ROWS))
    trainer, stored = fitted(folder / "stored", module(), rows, epochs)
    yield "nothing", weights(replay(trainer).stages[0].groups)
    with threads(2):
        yield "two threads in place of one", weights(replay(trainer).stages[0].groups)
    others = {
        "one row less": (module(), Subset(data, range(1, ROWS))),
        "a learning rate 0.01 % higher": (module(1.0001), rows),
    }
    for name, (other, its_rows) in others.items():
        found = fitted(folder / name, other, its_rows, epochs)[1]
        yield name, weights(compare_states(stored, found, Tolerance()).groups)


def weights(groups: Any) -> float:
    """Return the largest relative distance of the parameters."""
    return next(group.relative for group in groups if group.name == "module.parameters")


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch have a number of threads, and then one again."""
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 5], help="epochs of the trainings")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print("| what differs | optimizer | BatchNorm | epochs | distance |\n| --- | --- | --- | --- | --- |")
    for epochs in parser.parse_args().epochs:
        for optimizer in ("SGD", "Adam"):
            for batch_norm in (False, True):
                with tempfile.TemporaryDirectory() as folder:
                    for name, distance in distances(optimizer, batch_norm, epochs, Path(folder)):
                        print(f"| {name} | {optimizer} | {'yes' if batch_norm else 'no'} | {epochs} | {distance:.0e} |")


if __name__ == "__main__":
    main()
