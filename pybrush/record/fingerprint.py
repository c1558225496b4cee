"""The semantic fingerprint: what training depends on, and how two fingerprints differ.

A difference here changes what "trained without the forget set" means, so it refuses; versions, device and
threads are the environment, where a difference is allowed and named in the guarantee.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pybrush.errors import ConfigurationError, FingerprintError
from pybrush.hashing import chained

_SHOWN_LINES = 12


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, ASCII, no NaN.

    Raises:
        ConfigurationError: for a value that JSON does not have; NaN is not equal to itself when read again.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"a record keeps settings as JSON, which does not have this value ({error})."
        ) from error


def plain(value: Any) -> Any:
    """Return a value as it comes back from JSON: lists for tuples, text for the keys of mappings."""
    return json.loads(canonical_json(value))


def semantic_digest(semantic: Mapping[str, Any]) -> bytes:
    """Return the digest of a fingerprint, as `plain` returns it, over its canonical JSON; 32 bytes."""
    return chained("pybrush-meaning", canonical_json(semantic).encode("ascii"))


def check_same(recorded: Mapping[str, Any], now: Mapping[str, Any], record: object) -> None:
    """Compare the recorded fingerprint with the present one.

    Raises:
        FingerprintError: naming every field that differs, with both values.
    """
    before, after = flatten(recorded), flatten(now)
    changed = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    if changed:
        shown = "\n".join(_difference(name, before.get(name), after.get(name)) for name in changed)
        raise FingerprintError(
            f"the training is not the one that {record} was made with; {len(changed)} fields differ:\n{shown}\n"
            "Restore what was recorded, or start a new record in another folder."
        )


def environment_differences(environments: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return one sentence for each field of the environment that is not the same in all stages."""
    values: dict[str, set[str]] = {}
    for environment in environments:
        for name, value in flatten(environment).items():
            values.setdefault(name, set()).add(str(value))
    return tuple(
        f"stages were trained under different {name}: {', '.join(sorted(found))}"
        for name, found in sorted(values.items())
        if len(found) > 1
    )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted names; lists stay values."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _difference(name: str, before: Any, after: Any) -> str:
    if isinstance(before, str) and isinstance(after, str) and "\n" in before + after:
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "recorded", "now", lineterm="", n=1)
        return f"  {name}:\n" + "\n".join(f"    {line}" for line in list(lines)[:_SHOWN_LINES])
    return f"  {name}: recorded {before!r}, now {after!r}"
