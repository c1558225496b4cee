"""What the core asks of an approximate method: a name, settings, what it promises, and one function.

The core runs it on each constituent that holds forgotten rows, stores what it leaves as the state of a release,
and keeps the books: the same request, the same erasure and the same events as a rebuild has. Guide:
docs/guarantees.md, "After an approximate request".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pybrush.chain import Asked
from pybrush.errors import ConfigurationError, GuaranteeError
from pybrush.guarantee import Budget, Certified, Empirical
from pybrush.learner import Learner
from pybrush.plan.order import Positions, ReleaseSeeds
from pybrush.record.fingerprint import canonical_json
from pybrush.record.releases import OWN_METHODS, REBUILD

_TAKEN = frozenset({"auto", "none", *OWN_METHODS})
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")

Needed = Literal["forget", "retain"]


@dataclass(frozen=True)
class Portion:
    """What a method gets of one shard.

    Attributes:
        shard: counted from 0.
        data: the data set, as the adapter handed it to the core.
        forget: positions in `data` of the rows to forget that are at hand, ascending, shape (k,).
        retain: positions of the shard's other rows that are at hand, ascending, shape (m,).
        seeds: purpose -> 64 bits; all randomness comes from here, but for a certificate's noise, which comes
            from the operating system.
        secret: the second, secret state that the last method left of this shard; None where there is none.
    """

    shard: int
    data: Any
    forget: Positions
    retain: Positions
    seeds: ReleaseSeeds
    secret: Any


@dataclass(frozen=True)
class Applied:
    """What a method did at one shard.

    Attributes:
        guarantee: what it proves of this shard, for these rows: what was promised, or more, with what was measured.
        secret: a second state that nobody may see, such as the one without noise; from it, too, the forgotten rows
            must be gone. It lies in the release, readable by its owner alone, for the next request.
        visits: rows that it visited, each time counted.
        steps: updates that it made.
        notes: plain values for the release's manifest; they name no sample.
    """

    guarantee: Certified | Empirical
    secret: Any = None
    visits: int = 0
    steps: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)


class ApproximateMethod(Protocol):
    """A way to forget without training again."""

    @property
    def name(self) -> str:
        """Lower-case letters, digits, hyphens and underscores."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything else that decides what it does, as plain JSON.

        They are hashed into the release's key and kept in the record, so they name no sample.
        """

    @property
    def promise(self) -> Certified | Empirical:
        """What it proves of one shard, at least; a Budget is compared with it before anything is touched."""

    @property
    def needs(self) -> frozenset[Needed]:
        """Which rows must be at hand, with the recorded contents: "forget", "retain", both or none."""

    def apply(self, learner: Learner, portion: Portion) -> Applied:
        """Take the forgotten rows out of the model, which holds the constituent's state, and leave it in the new one.

        Called where the framework can train. An error leaves the record and the user's model as they were.
        """


@dataclass(frozen=True)
class Terms:
    """How a request is to be served.

    Attributes:
        method: the approximate method; None: the stages are rebuilt.
        guarantee: what the record must guarantee afterwards, as a whole.

    Raises:
        ConfigurationError: for a method whose name or settings cannot stand in a record.
        GuaranteeError: for a guarantee that is none, or that the method cannot give.
    """

    method: ApproximateMethod | None = None
    guarantee: Asked = None

    def __post_init__(self) -> None:
        asked, method = self.guarantee, self.method
        if asked not in (None, "exact") and not isinstance(asked, Budget):
            raise GuaranteeError(f"guarantee must be None, 'exact' or a Budget(epsilon, delta); got {asked!r}.")
        if method is None:
            return
        method_text(method)
        if asked == "exact":
            raise GuaranteeError(
                f"the method {method.name!r} proves at most {type(method.promise).__name__}, not exact; leave method= "
                "out, so that the stages are rebuilt, or leave out guarantee='exact'."
            )


def method_text(method: ApproximateMethod) -> str:
    """Return how a method stands in the record and in the key of its releases: its name, and its settings if any.

    Raises:
        ConfigurationError: for a name of another form or of PyBrush's own, and for settings that JSON does not have.
    """
    if not _NAME.fullmatch(method.name) or method.name in _TAKEN:
        raise ConfigurationError(
            "the name of a method is 1 to 64 lower-case letters, digits, hyphens and underscores, a letter first, and "
            f"none of {', '.join(sorted(_TAKEN))}; got {method.name!r}."
        )
    if not isinstance(method.promise, (Certified, Empirical)):
        raise ConfigurationError(
            f"a method that does not train again promises Certified or Empirical; {method.name} has {method.promise!r}."
        )
    return f"{method.name} {canonical_json(method.settings)}" if method.settings else method.name


def terms_of(method: str | ApproximateMethod, guarantee: Asked) -> Terms:
    """Return the terms that a caller named, "auto" and "rebuild" by their names.

    Raises:
        ConfigurationError: for a method whose name or settings cannot stand in a record.
        GuaranteeError: for a method that is not known, and what `Terms` refuses.
    """
    if isinstance(method, str):
        if method not in ("auto", REBUILD):
            raise GuaranteeError(
                f"method={method!r} is not known to this version; use method='auto' or 'rebuild', or an object as "
                "pybrush.method.ApproximateMethod describes it."
            )
        return Terms(None, guarantee)
    return Terms(method, guarantee)
