"""PyBrush: machine unlearning that says what it guarantees.

The core: guarantees, plans, records and requests, free of any framework. Training is made forgettable by an
adapter, such as `pybrush_lightning`. Importing this package brings in no framework; names are loaded when
they are first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pybrush.errors import PyBrushError
    from pybrush.guarantee import Assumption, Budget, Certified, Empirical, Exact
    from pybrush.plan import ShardPlan
    from pybrush.record import Record
    from pybrush.replay import Replay, Tolerance
    from pybrush.result import UnlearnCost, UnlearnResult

_HOMES = {
    "Assumption": "guarantee",
    "Budget": "guarantee",
    "Certified": "guarantee",
    "Empirical": "guarantee",
    "Exact": "guarantee",
    "PyBrushError": "errors",
    "Record": "record",
    "Replay": "replay",
    "ShardPlan": "plan",
    "Tolerance": "replay",
    "UnlearnCost": "result",
    "UnlearnResult": "result",
}

__all__ = [
    "Assumption",
    "Budget",
    "Certified",
    "Empirical",
    "Exact",
    "PyBrushError",
    "Record",
    "Replay",
    "ShardPlan",
    "Tolerance",
    "UnlearnCost",
    "UnlearnResult",
    "__version__",
]

__version__ = version("pybrush")


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
