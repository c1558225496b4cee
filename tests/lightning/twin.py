"""The cases that are trained twice, and the fresh process that trains them without the forgotten rows.

As a script it reads one job a line and answers each with a value or a traceback. A "fit" trains a case on
data from which the rows were physically taken, with the initial state of a file.
"""

import json
import os
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
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)
from torch.utils.data import DataLoader, TensorDataset

import pybrush_lightning
from pybrush_lightning import SISA
from tests.lightning.models import (
    KILL,
    Adapted,
    Data,
    Drawing,
    Net,
    Noisy,
    OtherNet,
    Pushing,
    Remembering,
    Rows,
    SavesForTheCluster,
    Table,
    Validated,
    WithLoader,
)
from tests.lightning.special import Adversaries, Changing, ValidatedByEpoch, compiled_net

KEY, SEED = bytes(range(32)), 5


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


TABLE = {"ids": "names", "subjects": "owners", "times": "days"}

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
    "subjects": Case(sisa={"subjects": "owners"}, gone=(3, 14, 25, 36)),
    "state in many places": Case(Remembering, callbacks=(Pushing,), slices=3),
    "random starts": Case(Drawing),
    "frozen backbone": Case(Adapted),
    "workers": Case(loader={"num_workers": 2}, rows=Noisy, sisa={"ids": "names", "content": "off"}, shards=1),
    "the other package": Case(OtherNet, package=pl),
    "saved": Case(
        trainer={"enable_checkpointing": True},
        callbacks=(lambda: ModelCheckpoint(save_last=True, every_n_train_steps=2), SavesForTheCluster),
    ),
    "saved in the other package": Case(
        OtherNet,
        package=pl,
        trainer={"enable_checkpointing": True},
        callbacks=(lambda: pl.callbacks.ModelCheckpoint(save_last=True, every_n_train_steps=2),),
    ),
}  # fmt: skip


CASES |= {
    "steps": Case(slices=1, epochs=3, trainer={"max_steps": 7}),
    "steps in slices": Case(epochs=3, trainer={"max_steps": 9}),
    "steps and no epochs": Case(trainer={"max_steps": 13, "max_epochs": None}),
    "at least some steps": Case(
        Validated, slices=1, epochs=6, validation=True, trainer={"min_steps": 17},
        callbacks=(lambda: EarlyStopping("val_loss", patience=1, min_delta=5.0),),
    ),
    "at least some epochs in slices": Case(
        Validated, epochs=6, validation=True, trainer={"min_epochs": 4},
        callbacks=(lambda: EarlyStopping("val_loss", patience=1, min_delta=5.0),),
    ),
    "a few batches": Case(trainer={"limit_train_batches": 3}),
    "a share of the batches": Case(slices=3, trainer={"limit_train_batches": 0.3}),
    "validation after batches": Case(
        lambda: Validated(scheduler="plateau"), validation=True, epochs=4, trainer={"val_check_interval": 3}
    ),
    "validation after batches of all epochs": Case(
        Validated, validation=True, epochs=8, trainer={"val_check_interval": 4, "check_val_every_n_epoch": None},
        callbacks=(lambda: EarlyStopping("val_loss", patience=2, min_delta=0.05),),
    ),
    "reloaded validation": Case(
        lambda: ValidatedByEpoch(scheduler="plateau"), source="changing", epochs=5,
        trainer={"reload_dataloaders_every_n_epochs": 2},
    ),
    "early stop in slices": Case(
        Validated, epochs=9, validation=True, slices=3,
        callbacks=(lambda: EarlyStopping("val_loss", patience=1, min_delta=0.05),),
    ),
    "accumulation by schedule": Case(epochs=4, callbacks=(lambda: GradientAccumulationScheduler({0: 1, 2: 3}),)),
    "double precision": Case(trainer={"precision": "64-true"}),
    "true half precision": Case(trainer={"precision": "bf16-true"}),
    "two optimizers by hand": Case(Adversaries, slices=1, epochs=3),
    "two optimizers by hand in slices": Case(Adversaries, trainer={"max_steps": 15}),
}  # fmt: skip

CASES |= {
    "in order without short batches": Case(loader={"shuffle": False, "drop_last": True}, sisa={"ids": "names"}),
    "workers that stay": Case(
        loader={"num_workers": 2, "persistent_workers": True, "prefetch_factor": 3}, rows=Noisy, shards=1,
        sisa={"ids": "names", "content": "off"},
    ),
    "everything that watches": Case(
        Validated, validation=True, trainer={"logger": True, "enable_progress_bar": True, "enable_checkpointing": True},
        callbacks=(RichProgressBar, lambda: LearningRateMonitor("step"), lambda: ModelCheckpoint(monitor="val_loss")),
    ),
    "watched in the other package": Case(
        OtherNet, package=pl, trainer={"logger": True, "enable_progress_bar": True},
        callbacks=(lambda: pl.callbacks.LearningRateMonitor("epoch"), pl.callbacks.TQDMProgressBar),
    ),
    "a table": Case(rows=Table, sisa=TABLE, gone=(3, 14, 25, 36)),
    "a share of a table": Case(
        lambda: Validated(scheduler="plateau"), rows=Table, sisa=TABLE, gone=(3, 14, 25, 36), validation=True, epochs=4,
        trainer={"limit_train_batches": 0.5, "val_check_interval": 2}, loader={"drop_last": True},
    ),
    "compiled": Case(compiled_net),
    "the typed trainer": Case(package=pybrush_lightning),
    "encrypted": Case(lambda: Net("adam"), sisa={"encrypt": True}),
}  # fmt: skip

LONG = {"workers", "workers that stay"}
"""Cases that are left to the long run."""


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
    if case.source == "changing":
        return {"datamodule": Changing(lambda: case.rows(gone), settings)}
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
