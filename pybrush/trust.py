"""Which objects the configuration in a record may build: a record may come from someone else.

Hydra's own blocklist names what is known to do harm; this is the opposite, a list of what is trusted.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pybrush.errors import ConfigurationError


@dataclass(frozen=True)
class Trust:
    """Modules whose objects may be built; each name stands for all that lies below it.

    Attributes:
        classes: modules of which classes may be built.
        never: modules among them of which nothing may be.
        allowed: what the user named for this call: modules, of which functions may be called too, or one target.
        functions: functions that may be called, by their full names.
    """

    classes: Sequence[str]
    never: Sequence[str] = ()
    allowed: Sequence[str] = ()
    functions: Sequence[str] = ()


def check_targets(config: Any, source: Path, trust: Trust, locate: Callable[[str], Any]) -> None:
    """Refuse a configuration that would build something untrusted.

    A target's own home counts, not only the path that leads there: `torch.os.system` is reached through torch.
    Nothing outside of the trusted modules is imported to find out.

    Args:
        config: plain containers, interpolations resolved.
        source: where it came from, for the message.
        trust: what may be built.
        locate: imports the object of a dotted path.

    Raises:
        ConfigurationError: naming target, place and what to do.
    """
    for place, target in targets(config):
        if not _is_trusted(target, trust, locate):
            raise ConfigurationError(
                f"{source} would build {target!r} at {place}, which is not trusted. Nothing was built. If you know it, "
                f"say allow=[{target}], or name its package; if you do not, the record may not be what it seems."
            )


def targets(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Return place and value of every `_target_` in a configuration."""
    if isinstance(node, Mapping):
        for name, below in node.items():
            if name == "_target_":
                yield place, below
            else:
                yield from targets(below, f"{place}.{name}".lstrip("."))
    elif isinstance(node, (list, tuple)):
        for index, below in enumerate(node):
            yield from targets(below, f"{place}[{index}]")


def _is_trusted(target: Any, trust: Trust, locate: Callable[[str], Any]) -> bool:
    if not isinstance(target, str) or not _is_below(target, [*trust.classes, *trust.allowed]):
        return False
    if target in trust.functions or target in trust.allowed:
        return True
    found = locate(target)
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if _is_below(home, trust.allowed):
        return True
    return inspect.isclass(found) and _is_below(home, trust.classes) and not _is_below(home, trust.never)


def _is_below(name: str, modules: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{module.rstrip('.')}.") for module in modules)
