"""What the entry point `pybrush.adapters` names: which models are Keras', their aggregate, and the command's part.

The `pybrush` command builds model, data and the arguments of fit from a configuration and hands them over here;
`aggregate`, `claims` and `export` are for everyone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from pybrush.plan.forecast import Sizes
from pybrush.record import Record
from pybrush.replay import Replay
from pybrush.result import UnlearnResult
from pybrush_keras.deployed import aggregate_of, deployed
from pybrush_keras.export import export
from pybrush_keras.fitting import Fit, FitData
from pybrush_keras.replay import replay
from pybrush_keras.serving import record_of
from pybrush_keras.sizes import sizes_of

_ROOMS = ("callbacks", "constraints", "initializers", "losses", "metrics", "optimizers", "regularizers")


class KerasAdapter:
    """The adapter of Keras 3, under every backend."""

    runner = "fit"
    """The group of the configuration that builds what trains: the arguments of fit."""

    trusted = ("pybrush_keras", *(f"keras.{room}" for room in _ROOMS), *(f"keras.src.{room}" for room in _ROOMS))
    """Modules from which a record's configuration may build objects without being asked about.

    Not all of Keras: there are layers that load whatever file their arguments name.
    """

    distrusted = ()
    """Modules among them whose classes import and call whatever their arguments name: none."""

    builders = ("pybrush_keras.models.mlp", "pybrush_keras.models.small_cnn")
    """Functions that may build objects."""

    def claims(self, model: Any) -> int:
        """Return 2 for a Keras model, else 0: under the torch backend it is a torch module too."""
        return 2 * isinstance(model, keras.Model)

    def aggregate(self, record: Record, model: Any) -> Any:
        """Return one model that predicts with all constituents of a record."""
        return aggregate_of(record, model)

    def export(self, record: Record, folder: str | Path, *, overwrite: bool) -> Path:
        """Write the model that a record deploys."""
        return export(record, folder, overwrite=overwrite)

    def begin(self, seed: int) -> None:
        """Seed everything, for a process that runs the command."""
        keras.utils.set_random_seed(seed)

    def fit(self, runner: Fit, model: Any, data: FitData) -> None:
        """Fit a model on data."""
        runner.run(model, data)

    def test(self, runner: Fit, model: Any, data: FitData) -> dict[str, float]:
        """Evaluate a fitted model, by all constituents together; return its loss and metrics."""
        whole = deployed(record_of(runner.sisa), model)
        found = whole.evaluate(**data.evaluate_arguments(), verbose=0, return_dict=True)
        return {f"test/{name}": float(value) for name, value in found.items()}

    def sizes(self, runner: Fit, model: Any, data: FitData) -> Sizes:
        """Return what a fit of a model on data would be made for; nothing is trained."""
        return sizes_of(runner.sisa, model, runner.arguments(data))

    def unlearn(self, runner: Fit, model: Any, data: FitData, request: Mapping[str, Any]) -> UnlearnResult:
        """Serve a request, given as the keyword arguments of `SISA.unlearn`."""
        runner.sisa.given = runner.given(model, data)
        return runner.sisa.unlearn(**request)

    def replay(self, runner: Fit, model: Any, data: FitData, request: Mapping[str, Any]) -> Replay:
        """Replay stages, given as the keyword arguments of `pybrush_keras.replay`."""
        runner.sisa.given = runner.given(model, data)
        return replay(runner.sisa, **request)

    def script(self, record: Record, reading: str, request: Mapping[str, str]) -> str:
        """Return Python lines that serve a request on a record made by a script.

        Args:
            record: the record.
            reading: a line that reads the ids, or "".
            request: keyword arguments as source text.
        """
        lines = [
            "from pathlib import Path",
            "from pybrush_keras import SISA",
            *_sisa_lines(record),
            reading,
            f"result = sisa.unlearn({_listed(request)}, model=model, x=x, y=y)",
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
            "from pybrush import Tolerance",
            "from pybrush_keras import SISA, replay",
            *_sisa_lines(record),
            f"found = replay(sisa, model=model, x=x, y=y, {_listed(request)})",
            "print(found.outcome)",
        ])  # fmt: skip


def _sisa_lines(record: Record) -> list[str]:
    named = ", ids=..., subjects=..." if record.plan.naming == "ids" else ", subjects=..."
    return [
        "# model (compiled), x, y and what stands for ... here: made as in the script that trained the record",
        f"sisa = SISA(record={str(record.folder)!r}{named})",
    ]


def _listed(arguments: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={text}" for name, text in arguments.items())
