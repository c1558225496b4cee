"""Finding the adapter of a framework by entry point, so that the core imports no framework.

Each distribution registers an adapter in the group `pybrush.adapters`, once under the name of every package whose
models it knows. Only adapters of packages that a model's class comes from are imported: nobody waits for a framework
that is not in use, or needs to have it. An adapter's `claims(model)` returns how specifically it knows a model, 0 for
not at all; the highest claim wins and a tie is an error.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any, Protocol

from pybrush.errors import MissingExtraError, UnsupportedError

GROUP = "pybrush.adapters"


class Adapter(Protocol):
    """What an adapter offers besides a Learner."""

    def claims(self, model: Any) -> int:
        """Return how specifically the adapter knows a model; 0 for not at all."""

    def aggregate(self, record: Any, model: Any) -> Any:
        """Return one model that predicts with all constituents of a record."""


def adapter_named(name: str) -> Any:
    """Return an installed adapter by its name.

    Raises:
        MissingExtraError: where it or its framework is not installed.
    """
    remedy = f"pip install 'pybrush[{name}]'"
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        raise MissingExtraError(f"the adapter {name!r} is not installed: {remedy}.")
    try:
        return found[0].load()()
    except ImportError as error:
        raise MissingExtraError(f"the adapter {name!r} cannot be imported ({error}): {remedy}.") from error


def adapter_of(model: Any) -> Adapter:
    """Return the adapter that claims a model.

    Raises:
        UnsupportedError: where none does, or two do alike.
        ImportError: where the adapter of a package that the model's class comes from cannot be imported.
    """
    packages = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    registered = entry_points(group=GROUP)
    # By its value, since an adapter that knows two packages claims a model of both only once.
    candidates = {entry.value: entry for entry in registered if entry.name in packages}
    claims: list[tuple[int, str, Adapter]] = []
    for entry in candidates.values():
        adapter = entry.load()()
        if claim := adapter.claims(model):
            claims.append((claim, entry.name, adapter))
    best = [found for found in claims if found[0] == max(claim for claim, _, _ in claims)]
    if len(best) != 1:
        names = ", ".join(name for _, name, _ in best) or "none"
        raise UnsupportedError(
            f"a model of type {type(model).__name__} is claimed by {names}; exactly one adapter must claim it. "
            f"There are adapters for models of {', '.join(sorted(registered.names)) or 'nothing'}."
        )
    return best[0][2]
