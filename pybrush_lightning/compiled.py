"""Modules that torch.compile has been at: they train compiled, and are copied and answer uncompiled.

The compiled steps are functions on the instance that hold on to the module they were made of, so a copy would
go on computing with the first module's weights; and the aggregate calls one module with the weights of many,
for each of which it would be compiled anew. Guide: docs/pitfalls.md, "Compiled modules".
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from pybrush_lightning import _private

_CALL = "_compiled_call_impl"
"""Where torch keeps what module.compile() made; copies of Lightning's modules keep it too."""


def is_compiled(module: nn.Module) -> bool:
    """Whether a module, or a part of it, runs compiled: torch.compile(module) or module.compile()."""
    parts = [vars(part).get(_CALL) for part in module.modules()]
    return bool(_private.compiled_steps(module)) or any(part is not None for part in parts)


@contextmanager
def uncompiled(module: nn.Module) -> Iterator[None]:
    """Run a module as it was written, for a while."""
    # The stance is set when it is made, not when it is entered.
    with torch.compiler.set_stance("force_eager") if is_compiled(module) else nullcontext():
        yield


def copied(module: nn.Module) -> nn.Module:
    """Return a copy of a module that is not compiled."""
    steps, own = _private.compiled_steps(module), vars(module)
    compiled = {name: own[name] for name in (*steps, _private.COMPILER_CONTEXT) if steps}
    own.update({_private.COMPILER_CONTEXT: None} if steps else {})
    for name in steps:
        del own[name]
    try:
        member = copy.deepcopy(module)
    finally:
        own.update(compiled)
    for part in member.modules():
        vars(part).pop(_CALL, None)
    return member


def unwrapped(model: Any) -> Any:
    """Return the Lightning module in what torch.compile(module) returned, its steps compiled; others as they are."""
    inner = _private.module_below(model)
    if inner is not model and not _private.compiled_steps(inner):
        _private.compile_steps(model)
    return inner
