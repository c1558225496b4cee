"""What a fingerprint keeps of the user's own code and settings: source texts, plain values, short ones."""

from __future__ import annotations

import inspect
import json
import math
import sys
import sysconfig
from collections.abc import Iterable
from functools import cache, partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from pybrush.hashing import chained

_LONGEST = 2000
"""Characters up to which a setting is written as it is."""


def sources_of(kinds: Iterable[type]) -> dict[str, str]:
    """Return the source text of those classes that are the user's own, "unknown" where there is none."""
    found: dict[str, str] = {}
    for kind in dict.fromkeys(kinds):
        if not is_installed(kind):
            name = kind.__qualname__ if kind.__qualname__ not in found else f"{kind.__module__}.{kind.__qualname__}"
            found[name] = source_of(kind)
    return found


def source_of(item: Any) -> str:
    """Return the source text of a class or function, "unknown" where there is none."""
    try:
        return inspect.getsource(item)
    except (OSError, TypeError):
        return "unknown"


def code_of(function: Any) -> Any:
    """Return the function below a partial, or the class of a callable object: what has a source text."""
    while isinstance(function, partial):
        function = function.func
    return function if isinstance(function, (FunctionType, BuiltinFunctionType, MethodType)) else type(function)


def plain_of(value: Any) -> Any:
    """Return a value as JSON has it; for a function its name, for other types the name of the type."""
    if isinstance(value, dict):
        return {str(name): plain_of(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_of(item) for item in value]
    if hasattr(value, "__array__") and math.prod(value.shape) == 1:
        return plain_of(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # a NaN would differ from itself
    if isinstance(value, (FunctionType, BuiltinFunctionType, type)):
        return f"<{value.__qualname__}>"
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return f"<{type(value).__qualname__}>"


def short_of(value: Any) -> Any:
    """Return a plain value, or its digest where it is long: lists of rows or ids must not stay in the record."""
    text = json.dumps(value)
    return value if len(text) <= _LONGEST else f"<{chained('pybrush-meaning', text.encode()).hex()}>"


def is_installed(item: Any) -> bool:
    """Whether a class or function comes from the standard library or an installed distribution."""
    module = sys.modules.get(getattr(item, "__module__", ""), None)
    file = getattr(module, "__file__", None)
    if module is None or (file is None and module.__name__ != "__main__"):
        return module is not None
    return file is not None and is_installed_file(file)


def is_installed_file(file: str) -> bool:
    """Whether a file belongs to the standard library or an installed distribution."""
    return file.startswith(_places())


@cache
def _places() -> tuple[str, ...]:
    """Return the folders of the standard library and of installed distributions."""
    return tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
