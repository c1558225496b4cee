"""What a result promises: exact, certified or only measured, with every assumption named.

Exact, Certified and Empirical are three types, so that no code path can soften one into another by
accident. A result never claims more than its method proves. Guide: docs/guarantees.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pybrush.errors import ConfigurationError, CorruptRecordError

How = Literal["proved", "measured", "declared"]
Holds = Literal["yes", "unknown", "violated"]


@dataclass(frozen=True)
class Assumption:
    """One condition under which a guarantee holds.

    Attributes:
        name: a short handle, such as "initial-state".
        statement: what must be true, in one sentence.
        how: how it is known: proved by construction, measured by code, or declared by the user.
        holds: whether it is known to hold.
    """

    name: str
    statement: str
    how: How = "proved"
    holds: Holds = "yes"


@dataclass(frozen=True)
class Exact:
    """The same bits as training without the forget set, or with the named differences.

    Attributes:
        reference: what it is equal to.
        differences: named differences of the environment under which bits may differ.
        assumptions: the conditions, each proved, measured or declared.
    """

    reference: str
    differences: tuple[str, ...] = ()
    assumptions: tuple[Assumption, ...] = ()


@dataclass(frozen=True)
class Certified:
    """Indistinguishable from the reference up to (epsilon, delta).

    Attributes:
        epsilon: in nats, for the deletions named in `scope`.
        delta: a probability.
        reference: what it is indistinguishable from.
        scope: which deletions and releases the pair is for.
        composed: the pair over all releases since the last full training, if there are several.
        assumptions: the conditions, each proved, measured or declared.

    Raises:
        ConfigurationError: for a negative epsilon or a delta outside [0, 1).
    """

    epsilon: float
    delta: float
    reference: str
    scope: str
    composed: tuple[float, float] | None = None
    assumptions: tuple[Assumption, ...] = ()

    def __post_init__(self) -> None:
        _check_pair(self.epsilon, self.delta)


@dataclass(frozen=True)
class Empirical:
    """Nothing is proved; what was measured, and no more.

    Attributes:
        findings: what was found, one sentence each.
        limitations: what the findings cannot show.
    """

    findings: tuple[str, ...]
    limitations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budget:
    """A wish: at most epsilon (nats) at delta, for the forget set of the request.

    Raises:
        ConfigurationError: for a negative epsilon or a delta outside [0, 1).
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        _check_pair(self.epsilon, self.delta)


Guarantee = Exact | Certified | Empirical


def as_plain(guarantee: Guarantee) -> dict[str, Any]:
    """Return a guarantee as plain values for JSON, its type under "kind"."""
    return {"kind": type(guarantee).__name__, **asdict(guarantee)}


def from_plain(values: Mapping[str, Any]) -> Guarantee:
    """Return the guarantee that `as_plain` was given, also after its values went through JSON.

    Raises:
        CorruptRecordError: for members that no guarantee of this kind has.
    """
    members = {name: _tupled(value) for name, value in values.items() if name not in ("kind", "assumptions")}
    if "assumptions" in values:
        members["assumptions"] = tuple(Assumption(**each) for each in values["assumptions"])
    try:
        return _KINDS[values["kind"]](**members)
    except (TypeError, LookupError, ConfigurationError) as error:
        raise CorruptRecordError(f"a record holds a guarantee that is none ({error}); restore it.") from error


_KINDS: dict[str, type[Exact] | type[Certified] | type[Empirical]] = {
    kind.__name__: kind for kind in (Exact, Certified, Empirical)
}


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_pair(epsilon: float, delta: float) -> None:
    if not epsilon >= 0:
        raise ConfigurationError(f"epsilon must be at least 0 nats; got {epsilon!r}.")
    if not 0 <= delta < 1:
        raise ConfigurationError(f"delta must be a probability of at least 0 and below 1; got {delta!r}.")
