"""The cases that are trained twice, and the fresh process that trains them without the forgotten rows.

As a script it reads one job a line and answers each with a value or a traceback. A "fit" trains a case on
data from which the rows were physically taken, with the initial state of a file.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import pytorch_lightning as pl
import torch
import torchmetrics
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pybrush_lightning import SISA

KEY, SEED, ROWS = bytes(range(32)), 5, 44


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


class Pushing(lightning.Callback):
    """A user's callback whose own attributes steer training, and which has a state_dict as well."""

    def __init__(self):
        self.count, self.history = 0, []
        self.batches = 0

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state):
        self.batches = state["batches"]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.count += 1
        self.batches += 1
        self.history.append(float(pl_module.net[4].bias[0].detach()))
        with torch.no_grad():
            pl_module.net[4].bias += 1e-3 * self.count + 1e-4 * self.batches + 1e-3 * self.history[0]


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


@dataclass(frozen=True)
class Case:
    """One training; `gone` are the positions that a request forgets."""

    module: Callable[[], Any] = Net
    shards: int = 2
    slices: int = 2
    epochs: int = 2
    gone: tuple[int, ...] = (3, 20)
    rows: type[Rows] = Rows
    loader: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    sisa: dict[str, Any] = field(default_factory=dict)
    callbacks: tuple[Callable[[], Any], ...] = ()
    source: str = "loader"
    validation: bool = False
    package: Any = lightning


CASES = {
    "momentum": Case(),
    "adam": Case(lambda: Net("adam"), slices=3),
    "whole": Case(shards=1, slices=1),
    "one shard": Case(shards=1, slices=3),
    "accumulation": Case(trainer={"accumulate_grad_batches": 2}),
    "clipping": Case(trainer={"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
    "clipping by norm": Case(trainer={"gradient_clip_val": 0.1}),
    "half precision": Case(trainer={"precision": "bf16-mixed"}),
    "data module": Case(source="datamodule"),
    "loader of the module": Case(lambda: WithLoader(Rows), source="module"),
    "steps of the rate": Case(lambda: Net(scheduler="step"), slices=1),
    "steps of the rate in slices": Case(lambda: Net(scheduler="step")),
    "cosine": Case(lambda: Net("adam", "cosine"), slices=1, epochs=3),
    "cosine in slices": Case(lambda: Net("adam", "cosine"), slices=2, epochs=3),
    "one cycle by steps": Case(lambda: Net("adam", "onecycle"), slices=1, epochs=3),
    "plateau": Case(lambda: Validated(scheduler="plateau"), validation=True, epochs=4),
    "early stop": Case(
        Validated, slices=1, epochs=6, validation=True, shards=3,
        callbacks=(lambda: EarlyStopping("val_loss", patience=1, min_delta=0.05),),
    ),
    "validation within epochs": Case(Validated, validation=True, trainer={"val_check_interval": 0.5}),
    "no short batches": Case(loader={"drop_last": True}),
    "in order": Case(loader={"shuffle": False}, sisa={"ids": "names"}),
    "ids": Case(sisa={"ids": "names"}),
    "augmented": Case(rows=Noisy, sisa={"ids": "names", "content": "off"}),
    "equal rows": Case(rows=Repeated, gone=(2,)),
    "subjects": Case(sisa={"subjects": "owners"}, gone=(3, 14, 25, 36)),
    "state in many places": Case(Remembering, callbacks=(Pushing,), slices=3),
    "workers": Case(loader={"num_workers": 2}, rows=Noisy, sisa={"ids": "names", "content": "off"}, shards=1),
    "the other package": Case(OtherNet, package=pl),
}  # fmt: skip


def trainer_for(case, folder, **changes):
    """Return a quiet trainer with the case's SISA callback; the record is folder / "record"."""
    settings = {"shards": case.shards, "slices": case.slices, "key": KEY, "seed": SEED, **case.sisa}
    settings |= changes.pop("sisa", {})
    sisa = SISA(record=Path(folder) / "record", **settings)
    callbacks = [*(make() for make in case.callbacks), sisa, *changes.pop("callbacks", ())]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "max_epochs": case.epochs, "default_root_dir": str(folder)}
    return case.package.Trainer(callbacks=callbacks, **(quiet | case.trainer | changes))


def data_for(case, gone=(), **loader):
    """Return what fit takes besides the module: the case's data without some rows."""
    settings = {"batch_size": 5, "shuffle": True, **case.loader, **loader}
    if case.source == "datamodule":
        return {"datamodule": Data(lambda: case.rows(gone), settings)}
    if case.source == "module":
        return {}
    found = {"train_dataloaders": DataLoader(case.rows(gone), **settings)}
    if case.validation:
        held_out = Rows(rows=12, seed=9)
        found["val_dataloaders"] = DataLoader(TensorDataset(held_out.x, held_out.y), batch_size=5)
    return found


def module_for(case, initial, gone=()):
    """Return the case's module in the initial state of a file, which is written where it is not there."""
    torch.manual_seed(17 if Path(initial).exists() else 1)
    module = WithLoader(lambda: Rows(gone)) if case.source == "module" else case.module()
    if Path(initial).exists():
        module.load_state_dict(torch.load(initial, weights_only=True))
    else:
        torch.save(module.state_dict(), initial)
    return module


def answers(trainer, module):
    """Return what the aggregate says about some inputs through trainer.predict."""
    inputs = DataLoader(TensorDataset(Rows(seed=3).x), batch_size=16)
    return torch.cat(trainer.predict(module, inputs))


def fit_without(name, folder, initial, gone):
    """Train a case without some rows and write down what it answers."""
    case = CASES[name]
    module, trainer = module_for(case, initial, gone), trainer_for(case, folder)
    trainer.fit(module, **data_for(case, gone))
    torch.save(answers(trainer, module), Path(folder) / "answers.pt")
    return "done"


def forget(case, trainer, gone, **more):
    """Forget rows by the name that the case gives them."""
    if case.sisa.get("subjects"):
        return trainer.unlearn(subjects=sorted({Rows().owners[row] for row in gone}), **more)
    if case.sisa.get("ids"):
        return trainer.unlearn(ids=[Rows().names[row] for row in gone], **more)
    return trainer.unlearn(rows=list(gone), guarantee="exact", **more)


def unlearn_elsewhere(name, folder, gone, already=(), settings=(), loader=(), ask=None):
    """Forget rows with a trainer that fitted nothing, a new module and other settings; return the settings after.

    `already` are the rows that the data has lost; `ask` are arguments in place of the rows' names.
    """
    case = CASES[name]
    torch.manual_seed(99)
    module = WithLoader(lambda: Rows()) if case.source == "module" else case.module()
    trainer = trainer_for(case, folder, **dict(settings), sisa={"shards": None, "slices": None, "seed": None})
    data = data_for(case, already, **dict(loader))
    more = {"model": module, **data}
    result = forget(case, trainer, gone, **more) if ask is None else trainer.unlearn(**ask, **more)
    torch.save(answers(trainer, module), Path(folder) / "answers.pt")
    after = {name: getattr(trainer, name) for name in dict(settings)}
    return {**after, "current_epoch": trainer.current_epoch, "forgotten": result.forgotten}


def killed(job, at, **order):
    """Do a job in a fork that is killed in its n-th training step; say whether it was."""
    child = os.fork()
    if child == 0:
        KILL.at = at
        try:
            JOBS[job](**order)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


JOBS = {"fit": fit_without, "unlearn": unlearn_elsewhere, "killed": killed}


class FreshProcess:
    """Another process, which knows a case's name and never sees the forgotten rows."""

    def __init__(self):
        self.process = None

    def ask(self, job, /, **order):
        """Have a job done there and return its answer; fails with the traceback of there."""
        if self.process is None:
            command = [sys.executable, "-m", "tests.lightning.twin"]
            root = Path(__file__).parents[2]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root
            )
        self.process.stdin.write(json.dumps({"do": job, **order}, default=str).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line or b'{"error": "the process died"}')
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def close(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()


def serve():
    """Do what FreshProcess asks for until its pipe is closed."""
    answers_to, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            order = json.loads(line)
            answer = {"value": JOBS[order.pop("do")](**order)}
        except Exception:  # noqa: BLE001 (whatever it is, the test has to see it)
            answer = {"error": traceback.format_exc()}
        answers_to.write(json.dumps(answer) + "\n")
        answers_to.flush()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve()
