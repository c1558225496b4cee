"""What the entry point `pybrush.adapters` names: which models are Lightning's, and their aggregate."""

from __future__ import annotations

from typing import Any

from pybrush.record import Record
from pybrush_lightning import _private, aggregate


class LightningAdapter:
    """The adapter of `lightning` and `pytorch_lightning`."""

    def claims(self, model: Any) -> int:
        """Return 1 for a LightningModule of either package, else 0."""
        return int(isinstance(model, _private.module_classes()))

    def aggregate(self, record: Record, model: Any) -> aggregate.AggregateModule:
        """Return one module that predicts with all constituents of a record."""
        settings = record.plan.settings
        members = aggregate.constituents_of(record)
        return aggregate.AggregateModule(model, members, settings["outputs"], settings["aggregate"])
