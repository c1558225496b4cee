"""How validate, test and predict are answered by the aggregate, through the user's own steps.

While `answering` is on, `module(...)` runs every constituent and returns their aggregate; a step that calls
a submodule around it would see one constituent, so that raises. Nothing is left on the module afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from pybrush.errors import UnsupportedError
from pybrush.record import trees
from pybrush_lightning.aggregate import Constituent, How, Space, check_output, combine, tensors_of
from pybrush_lightning.attributes import Attributes, known_parts, placed_like, plain_attributes
from pybrush_lightning.codec import content_bytes
from pybrush_lightning.compiled import uncompiled


class Calls:
    """How often the aggregate answered, and whether it is answering now."""

    def __init__(self) -> None:
        self.count, self.inside = 0, False


def held_shard(module: nn.Module, constituents: dict[int, Constituent]) -> int | None:
    """Return the shard whose constituent equals a module's parameters and buffers bit for bit, or None."""
    own = tensors_of(module)
    for shard, constituent in constituents.items():
        stored = constituent.tensors
        if own.keys() == stored.keys() and all(content_bytes(own[n]) == content_bytes(stored[n]) for n in own):
            return shard
    return None


@contextmanager
def answering(module: nn.Module, constituents: dict[int, Constituent], space: Space, how: How) -> Iterator[Calls]:
    """Let `module(...)` answer with the aggregate; its submodules may not be called around it.

    Raises:
        UnsupportedError: inside, where a step calls a submodule directly.
    """
    members = [_Member(module, constituent) for constituent in constituents.values()]
    calls, own = Calls(), module.forward
    patched = vars(module).get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        if calls.inside:
            return own(*args, **kwargs)
        calls.count += 1
        calls.inside = True
        try:
            outputs = [check_output(member(args, kwargs), space) for member in members]
        finally:
            calls.inside = False
        return combine(outputs, space, how)

    with ExitStack() as stack:
        stack.enter_context(uncompiled(module))
        for name, part in module.named_modules():
            if part is not module and any(True for _ in part.parameters()):
                handle = part.register_forward_pre_hook(_guard(name, calls))
                stack.callback(handle.remove)
        module.forward = forward
        stack.callback(_put_back_forward, module, patched)
        yield calls


class _Member:
    """One constituent, called in the place of the user's module."""

    def __init__(self, module: nn.Module, constituent: Constituent) -> None:
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        names = [name for name, _ in module.named_parameters()] + [name for name, _ in module.named_buffers()]
        self.module = module
        self.tensors = {name: constituent.tensors[name].to(device) for name in names}
        self.attributes = _differing(module, constituent)

    def __call__(self, args: Any, kwargs: Any) -> Any:
        before = [(part, name, getattr(part, name)) for part, held in self.attributes for name in held]
        for part, held in self.attributes:
            vars(part).update(held)
        try:
            return functional_call(self.module, self.tensors, args, kwargs)
        finally:
            for part, name, value in before:
                vars(part)[name] = value


def _differing(module: nn.Module, constituent: Constituent) -> list[tuple[nn.Module, Attributes]]:
    """Return the plain attributes in which a constituent differs from what the module holds now."""
    known, found = known_parts(module), []
    for name, part in module.named_modules():
        own, stored = plain_attributes(part, known), constituent.attributes.get(name, {})
        other = [n for n, value in stored.items() if n in own and not _equal(own[n], value)]
        if other:
            found.append((part, {n: placed_like(stored[n], vars(part)[n]) for n in other}))
    return found


def _equal(own: Any, stored: Any) -> bool:
    (tree, arrays), (stored_tree, stored_arrays) = trees.pack(own), trees.pack(stored)
    return tree == stored_tree and all((arrays[name] == stored_arrays[name]).all() for name in arrays)


def _guard(name: str, calls: Calls) -> Any:
    def check(*_: Any) -> None:
        if not calls.inside:
            raise UnsupportedError(
                f"an evaluation step calls {name} directly, so it would see one constituent instead of the aggregate. "
                "Call self(...) in the step, or evaluate record.aggregate(module) in a loop of your own "
                "(aggregate_step= is not part of this version)."
            )

    return check


def _put_back_forward(module: nn.Module, patched: Any) -> None:
    vars(module).pop("forward", None)
    if patched is not None:
        vars(module)["forward"] = patched
