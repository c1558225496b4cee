"""Attributes of one object are others for a while: how progress bars, loggers and steps are told of stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Let attributes of an object have other values, and then what the object itself held, if anything."""
    own = vars(owner)
    held = {name: own[name] for name in values if name in own}
    own.update(values)
    try:
        yield
    finally:
        for name in values:
            own.pop(name, None)
        own.update(held)
