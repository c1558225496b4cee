"""What `pybrush plan`, `unlearn`, `enqueue`, `verify`, `export` and `info` can be told: the shape of their YAML files.

The YAML files in conf/pybrush document each setting and hold the defaults; here are their types, and the checks of
the words on the command line before Hydra sees them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pybrush import forget_file
from pybrush.errors import ConfigurationError
from pybrush.plan.forecast import usual_requests
from pybrush.record.compare import Tolerance

_PATHS = ("record", "report", "receipt", "forget.file", "to")
"""Settings that are paths: taken as they stand, whatever Hydra's grammar makes of their characters."""

_NUMBERS = ("samples", "shards", "slices", "epochs", "model_bytes")
"""Settings of plan.yaml that describe a training in bare numbers."""


@dataclass(frozen=True)
class Forget:
    """The group `forget` of unlearn.yaml."""

    file: str | None = None
    kind: str = "ids"
    type: str = "auto"
    before: str | None = None
    queued: bool = False


@dataclass(frozen=True)
class Later:
    """The group `forget` of enqueue.yaml."""

    file: str | None = None
    kind: str = "ids"
    type: str = "auto"
    before: str | None = None
    admit: bool = False


@dataclass(frozen=True)
class UnlearnSettings:
    """unlearn.yaml.

    Raises:
        ConfigurationError: for settings that say nothing, or two things.
    """

    record: str
    forget: Forget = field(default_factory=Forget)
    missing: bool = False
    guarantee: str | None = None
    method: str = "auto"
    duplicates: str = "report"
    purge: str = "delete"
    dry_run: bool = False
    report: str | None = None
    receipt: str | None = None
    allow: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _one_of("forget.kind", self.forget.kind, forget_file.KINDS)
        _one_of("forget.type", self.forget.type, forget_file.TYPES)
        ways = (self.forget.file is not None, self.forget.before is not None, self.forget.queued, self.missing)
        if sum(ways) != 1:
            raise ConfigurationError(
                "say what to forget, in one way: forget.file=FILE, forget.before=DATE, forget.queued=true, or "
                "missing=true."
            )
        check_page(self.report)
        check_page(self.receipt, "receipt")


@dataclass(frozen=True)
class EnqueueSettings:
    """enqueue.yaml.

    Raises:
        ConfigurationError: for settings that say nothing, or two things.
    """

    record: str
    forget: Later = field(default_factory=Later)

    def __post_init__(self) -> None:
        _one_of("forget.kind", self.forget.kind, forget_file.QUEUE_KINDS)
        _one_of("forget.type", self.forget.type, forget_file.TYPES)
        if (self.forget.file is not None) + (self.forget.before is not None) + self.forget.admit != 1:
            raise ConfigurationError(
                "say in one way what is to wait: forget.file=FILE, forget.before=DATE or forget.admit=true."
            )


@dataclass(frozen=True)
class VerifySettings:
    """verify.yaml.

    Raises:
        ConfigurationError: for a depth that there is not.
    """

    record: str
    receipt: str | None = None
    depth: str = "digests"
    stages: Any = "touched"
    tolerance: Tolerance = field(default_factory=Tolerance)
    allow: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _one_of("depth", self.depth, ("manifests", "digests", "replay"))


@dataclass(frozen=True)
class ExportSettings:
    """export.yaml."""

    record: str
    to: str
    overwrite: bool = False


@dataclass(frozen=True)
class InfoSettings:
    """info.yaml."""

    record: str
    as_json: bool = False


@dataclass(frozen=True)
class PlanSettings:
    """plan.yaml.

    Numbers are checked where they are used, so that an error names them as everywhere else.

    Raises:
        ConfigurationError: for a record and numbers besides, and for numbers of which some are missing.
    """

    record: str | None = None
    samples: Any = None
    shards: Any = None
    slices: Any = None
    epochs: Any = None
    model_bytes: Any = None
    requests: Any = None

    def __post_init__(self) -> None:
        if self.record is not None and self.numbers:
            raise ConfigurationError(f"{', '.join(self.numbers)}: a record has its own; leave out record= or these.")
        missing = [name for name in ("samples", "shards", "slices", "epochs") if name not in self.numbers]
        if self.numbers and missing:
            raise ConfigurationError(f"bare numbers need {', '.join(f'{name}=' for name in missing)} too.")

    @property
    def numbers(self) -> dict[str, Any]:
        """The bare numbers that were given."""
        return {name: getattr(self, name) for name in _NUMBERS if getattr(self, name) is not None}

    def counts(self, samples: int) -> Sequence[Any]:
        """Return the numbers of forgotten samples to price, of so many."""
        if self.requests is None:
            return usual_requests(samples)
        return self.requests if isinstance(self.requests, (list, tuple)) else [self.requests]


def check_page(report: str | None, name: str = "report") -> None:
    """Check the place of a file before the request, which cannot be taken back when it turns out to have none.

    Raises:
        ConfigurationError: where it is no file in a folder that exists.
    """
    page = None if report is None else path_of(report).absolute()
    if page is not None and (page.is_dir() or not page.parent.is_dir()):
        raise ConfigurationError(f"{name}={report} must be a file in a folder that exists.")


def path_of(text: str) -> Path:
    """Return a path as it was typed; a shell leaves the ~ in record=~/records."""
    return Path(text).expanduser()


def check_words(words: Sequence[str], defaults: Any) -> None:
    """Refuse words that are no settings, without repeating a value: it may be an id.

    Args:
        words: KEY=VALUE each.
        defaults: the settings that there are, as plain containers.

    Raises:
        ConfigurationError: naming the key and those that there are.
    """
    known = [name for name, _ in leaves(defaults)]
    for word in words:
        key, found, _ = word.partition("=")
        if word.startswith("-"):
            raise ConfigurationError(f"{key} is not for this command, which does one thing at a time: KEY=VALUE only.")
        if not found or key not in known:
            said = f"{key} is not a setting" if found else "a word without = is no setting"
            hint = " Ids come from forget.file=FILE alone." if "forget.file" in known else ""
            raise ConfigurationError(f"{said}; there are {', '.join(known)}.{hint}")


def quoted(word: str) -> str:
    """Quote the value of a path for Hydra's grammar, in which spaces, commas and brackets mean something."""
    key, _, value = word.partition("=")
    if key not in _PATHS or value[:1] in ("'", '"') or "${" in value:
        return word
    return f"{key}='" + value.replace("'", "\\'") + "'"


def leaves(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Return dotted name and value of each setting."""
    if not isinstance(node, Mapping):
        yield place, node
        return
    for name, below in node.items():
        yield from leaves(below, f"{place}.{name}".lstrip("."))


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"{name} must be one of {', '.join(allowed)}; got {value!r}.")
