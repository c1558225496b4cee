"""Optimizers and schedulers as `configure_optimizers` first returned them.

Every shard starts with fresh ones. LightningCLI makes them once, before the trainer, and so may a module that
keeps them as attributes: the same objects come again, with the moments of the shard that was trained last.
They are put back here into the state in which they were first returned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from pybrush.errors import UnsupportedError

_first: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
"""The state of each optimizer and scheduler when it was first returned, as long as the object lives."""


def renew(optimizers: list[Any], configs: list[Any]) -> None:
    """Put what was returned before back into its first state, and take note of what is new.

    Args:
        optimizers: what configure_optimizers returned.
        configs: Lightning's configs of the schedulers that it returned.

    Raises:
        UnsupportedError: where an optimizer has trained before it was first seen, or comes again with another
            scheduler, which would have been made from the rate that training had come to.
    """
    schedulers = [config.scheduler for config in configs]
    if any(item in _first for item in optimizers) and any(item not in _first for item in schedulers):
        raise UnsupportedError(
            "configure_optimizers returned an optimizer that it returned before, with a new scheduler. Make both in "
            "it, or neither: each shard needs them as they are at the start."
        )
    for optimizer in optimizers:
        if optimizer not in _first and any(map(_has_trained, optimizer.state.values())):
            raise UnsupportedError(
                f"configure_optimizers returned a {type(optimizer).__name__} that has trained before, so shards would "
                "start from its moments. Return a new one."
            )
    for item in [*optimizers, *schedulers]:
        if item in _first:
            item.load_state_dict(copy.deepcopy(_first[item]))
        else:
            _first[item] = copy.deepcopy(item.state_dict())


@contextmanager
def renewed(optimizers: list[Any], configs: list[Any]) -> Iterator[None]:
    """Renew them for a while only: whoever looks at them leaves them as they were."""
    items = [*optimizers, *(config.scheduler for config in configs)]
    before = [copy.deepcopy(item.state_dict()) for item in items]
    renew(optimizers, configs)
    try:
        yield
    finally:
        for item, state in zip(items, before, strict=True):
            item.load_state_dict(state)


def _has_trained(state: Any) -> bool:
    """Whether what an optimizer keeps of a parameter comes from a step, as torch's own optimizers write it."""
    if not isinstance(state, dict):
        return False
    return float(state.get("step", 0)) > 0 or state.get("momentum_buffer") is not None
