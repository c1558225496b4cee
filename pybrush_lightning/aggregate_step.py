"""`SISA(aggregate_step=...)`: how steps that do not call `self(...)` are evaluated by the aggregate.

A name says which part of the module the steps call: that part answers with its aggregate. A function takes
the place of the steps: in it `module(...)` is the aggregate. Neither is part of the record, since evaluation
changes no stage. Guide: docs/pitfalls.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from pybrush.errors import ConfigurationError
from pybrush.replaced import replaced

Step = Callable[[Any, Any, int], Any]
"""Takes the module, a batch and its number; what it returns is what predict_step would return."""

AggregateStep = Step | str | None
"""A function in place of the steps, the name of a submodule, or None: steps call self(...)."""

_STEPS = ("validation_step", "test_step", "predict_step")


def forms(given: AggregateStep) -> tuple[str, Step | None]:
    """Return the name of the part that answers, "" for the module itself, and the function in place of the steps.

    Raises:
        ConfigurationError: for anything else than a name, a function or None.
    """
    if given is None:
        return "", None
    if isinstance(given, str) and given:
        return given, None
    if callable(given):
        return "", given
    raise ConfigurationError(
        f"aggregate_step must be the name of a submodule or a function of (module, batch, batch_idx); got {given!r}."
    )


def check_part(module: nn.Module, part: str) -> None:
    """Refuse a name of no submodule, or of one that holds nothing which constituents could differ in.

    Raises:
        ConfigurationError: naming the submodules that there are.
    """
    if not part:
        return
    named = dict(module.named_modules())
    if part in named and any(True for _ in named[part].parameters()):
        return
    there = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
    problem = "holds no parameters" if part in named else f"is no submodule of {type(module).__name__}"
    raise ConfigurationError(
        f"aggregate_step={part!r} {problem}. Name the one that evaluation steps call: {', '.join(there) or 'none'}."
    )


@contextmanager
def steps_replaced(module: nn.Module, step: Step) -> Iterator[None]:
    """Run a function in place of a module's evaluation steps."""

    # Lightning reads the names of the arguments, and passes the last one where there are several loaders.
    def run(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:  # noqa: ARG001
        return step(module, batch, batch_idx)

    with ExitStack() as stack:
        for name in _STEPS:
            stack.enter_context(replaced(module, **{name: run}))
        yield
