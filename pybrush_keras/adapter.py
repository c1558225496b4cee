"""What the entry point `pybrush.adapters` names: which models are Keras', and their aggregate."""

from __future__ import annotations

from typing import Any

import keras

from pybrush.record import Record
from pybrush_keras.deployed import aggregate_of


class KerasAdapter:
    """The adapter of Keras 3, under every backend."""

    trusted = ("pybrush_keras", "keras")
    """Modules from which a record's configuration may build objects without being asked about."""

    distrusted = ("keras.src.saving", "keras.saving")
    """Modules among them whose functions load and run whatever their arguments name."""

    def claims(self, model: Any) -> int:
        """Return 2 for a Keras model, else 0: under the torch backend it is a torch module too."""
        return 2 * isinstance(model, keras.Model)

    def aggregate(self, record: Record, model: Any) -> Any:
        """Return one model that predicts with all constituents of a record."""
        return aggregate_of(record, model)
