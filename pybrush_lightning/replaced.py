"""One attribute of one object is another for a while: how bars, loggers and evaluation steps are told of stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let an attribute of an object have a value, and then what the object itself held, if anything."""
    held = {name: vars(owner)[name]} if name in vars(owner) else {}
    setattr(owner, name, value)
    try:
        yield
    finally:
        vars(owner).pop(name, None)
        vars(owner).update(held)
