"""What the entry point `pybrush.adapters` names: which models are Lightning's, their aggregate, and the command's part.

The `pybrush` command builds model, data module and trainer from a configuration and hands them over here; `aggregate`,
`claims` and `export` are for everyone.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything

from pybrush.plan.forecast import Sizes
from pybrush.record import Record
from pybrush.replay import Replay
from pybrush.result import UnlearnResult
from pybrush_lightning import _private, aggregate
from pybrush_lightning.export import export
from pybrush_lightning.replay import replay
from pybrush_lightning.sizes import sizes_of
from pybrush_lightning.unlearn import unlearn

_ADVICE = (
    "The .* does not have many workers",
    "You defined a `validation_step` but have no `val_dataloader`",
    ".*LeafSpec.* is deprecated",
    ".*`tensorboardX` has been removed as a dependency",
    "GPU available but not used",
    "The number of training batches .* is smaller than the logging interval",
)
"""Warnings about machines and small data that would hide the command's own lines."""


class LightningAdapter:
    """The adapter of `lightning` and `pytorch_lightning`."""

    runner = "trainer"
    """The group of the configuration that builds what trains: a Trainer."""

    trusted = ("pybrush_lightning", "lightning.pytorch", "pytorch_lightning", "torch")
    """Modules from which a record's configuration may build objects without being asked about."""

    distrusted = ("lightning.pytorch.cli", "pytorch_lightning.cli")
    """Modules among them whose classes import and call whatever their arguments name."""

    builders = ()
    """Functions that may build objects: none, a module is a class."""

    def claims(self, model: Any) -> int:
        """Return 1 for a LightningModule of either package, else 0."""
        return int(isinstance(model, _private.module_classes()))

    def aggregate(self, record: Record, model: Any) -> aggregate.AggregateModule:
        """Return one module that predicts with all constituents of a record."""
        settings = record.plan.settings
        members = aggregate.constituents_of(record)
        return aggregate.AggregateModule(model, members, settings["outputs"], settings["aggregate"])

    def export(self, record: Record, folder: str | Path, *, overwrite: bool) -> Path:
        """Write the model that a record deploys."""
        return export(record, folder, overwrite=overwrite)

    def begin(self, seed: int) -> None:
        """Seed everything and silence Lightning's advice, for a process that runs the command."""
        for name in ("lightning.pytorch", "pytorch_lightning", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
        for message in _ADVICE:
            warnings.filterwarnings("ignore", message=message)
        seed_everything(seed, workers=True, verbose=False)

    def fit(self, trainer: Any, model: Any, data: Any) -> None:
        """Fit a module on a data module."""
        trainer.fit(model, datamodule=data)

    def test(self, trainer: Any, model: Any, data: Any) -> dict[str, float]:
        """Evaluate a fitted module, by all constituents together; return what it logged."""
        found = trainer.test(model, datamodule=data, verbose=False)
        return {name: float(value) for metrics in found for name, value in metrics.items()}

    def sizes(self, trainer: Any, model: Any, data: Any) -> Sizes:
        """Return what a fit of a module on a data module would be made for; nothing is trained."""
        return sizes_of(trainer, model, data)

    def unlearn(self, trainer: Any, model: Any, data: Any, request: Mapping[str, Any]) -> UnlearnResult:
        """Serve a request, given as the keyword arguments of `pybrush_lightning.unlearn`."""
        return unlearn(trainer, model=model, datamodule=data, **request)

    def replay(self, trainer: Any, model: Any, data: Any, request: Mapping[str, Any]) -> Replay:
        """Replay stages, given as the keyword arguments of `pybrush_lightning.replay`."""
        return replay(trainer, model=model, datamodule=data, **request)

    def script(self, record: Record, reading: str, request: Mapping[str, str]) -> str:
        """Return Python lines that serve a request on a record made by a script.

        Args:
            record: the record.
            reading: a line that reads the ids, or "".
            request: keyword arguments as source text.
        """
        lines = [
            "import lightning as L",
            "from pathlib import Path",
            "from pybrush_lightning import SISA",
            *_trainer_lines(record),
            reading,
            f"result = trainer.unlearn({_listed(request)}, model=model, train_dataloaders=loader)",
            "print(result.guarantee)",
        ]
        return "\n".join(line for line in lines if line)

    def replay_script(self, record: Record, request: Mapping[str, str]) -> str:
        """Return Python lines that replay stages of a record made by a script.

        Args:
            record: the record.
            request: keyword arguments as source text.
        """
        return "\n".join([
            "import lightning as L",
            "from pybrush import Tolerance",
            "from pybrush_lightning import SISA, replay",
            *_trainer_lines(record),
            f"found = replay(trainer, model=model, train_dataloaders=loader, {_listed(request)})",
            "print(found.outcome)",
        ])  # fmt: skip


def _trainer_lines(record: Record) -> list[str]:
    named = ", ids=..., subjects=..." if record.plan.naming == "ids" else ", subjects=..."
    return [
        "# model, loader and what stands for ... here: made as in the script that trained the record",
        f"trainer = L.Trainer(callbacks=[SISA(record={str(record.folder)!r}{named})])",
    ]


def _listed(arguments: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={text}" for name, text in arguments.items())
