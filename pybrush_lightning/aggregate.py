"""What predicts after a SISA fit: all constituents together, in the model's own output space.

`combine` is the arithmetic, `AggregateModule` the one module to deploy, and `answering` lets a trainer's
evaluation loops answer with the aggregate through the user's own steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pybrush.errors import ConfigurationError, UnsupportedError
from pybrush.record import Record

Space = Literal["logits", "log_probs", "probs", "values"]
How = Literal["mean", "vote"]
SPACES = ("logits", "log_probs", "probs", "values")

Constituent = dict[str, Tensor]
"""Parameters and buffers of one constituent by name."""


def combine(outputs: list[Tensor], space: Space, how: How) -> Tensor:
    """Return the aggregate of the constituents' outputs, in the space that they are in.

    Logits and log-probabilities give the logarithm of the mean probability; probabilities and values their
    mean; a vote gives log((votes + 1/classes) / (constituents + 1)), or the same without the logarithm for
    probabilities. Ties of one constituent go to the lowest class.

    Args:
        outputs: one tensor for each constituent, shape (..., classes), or any shape for values.
        space: what the outputs are.
        how: mean or vote.
    """
    stack = torch.stack(outputs)
    if space == "values":
        return stack.mean(dim=0)
    if how == "vote":
        classes, count = stack.shape[-1], len(outputs)
        votes = nn.functional.one_hot(stack.argmax(dim=-1), classes).sum(dim=0).to(stack.dtype)
        share = (votes + 1 / classes) / (count + 1)
        return share if space == "probs" else share.log()
    if space == "probs":
        return stack.mean(dim=0)
    return torch.logsumexp(stack.log_softmax(dim=-1), dim=0) - math.log(len(outputs))


def check_output(output: Any, space: Space) -> Tensor:
    """Refuse outputs that the declared space cannot mean.

    Raises:
        ConfigurationError: naming the four spaces.
    """
    choices = "Declare what the module returns: outputs='logits', 'log_probs', 'probs' or 'values'."
    if not isinstance(output, Tensor):
        raise ConfigurationError(f"the aggregate needs one tensor; the module returned {type(output).__name__}. {choices}")
    if space == "values":
        return output
    if output.ndim < 2 or output.shape[-1] == 1:
        raise ConfigurationError(f"outputs={space!r} needs classes on the last axis; got {tuple(output.shape)}. {choices}")
    sums_to_one = bool((output >= 0).all()) and torch.allclose(output.sum(-1), torch.ones_like(output.sum(-1)), atol=1e-4)
    if space != "probs" and sums_to_one:
        raise ConfigurationError(f"outputs={space!r}, and every row is a probability vector already. {choices}")
    if space == "probs" and not sums_to_one:
        raise ConfigurationError(f"outputs='probs', and rows do not sum to 1. {choices}")
    return output


def constituents_of(record: Record) -> dict[int, Constituent]:
    """Return parameters and buffers of each constituent of a record, by shard."""
    found = {}
    for shard, key in sorted(record.constituents().items()):
        module = record.store.load(key)[0]["module"]
        found[shard] = {**module["parameters"], **module["buffers"]}
    return found


def held_shard(module: nn.Module, constituents: dict[int, Constituent]) -> int | None:
    """Return the shard whose constituent equals a module's parameters and buffers bit for bit, or None."""
    own = _tensors(module, remove_duplicate=False)
    for shard, tensors in constituents.items():
        if own.keys() == tensors.keys() and all(torch.equal(own[n].cpu(), t) for n, t in tensors.items()):
            return shard
    return None


class AggregateModule(nn.Module):
    """All constituents as one module: what a SISA record deploys.

    Args:
        module: the user's module; it is copied for each constituent.
        constituents: parameters and buffers by shard.
        space: what the module returns.
        how: mean or vote.
    """

    def __init__(self, module: nn.Module, constituents: dict[int, Constituent], space: Space, how: How) -> None:
        super().__init__()
        self.space, self.how = space, how
        self.members = nn.ModuleList(_filled(module, tensors) for tensors in constituents.values())
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the aggregate of the constituents' outputs for a batch."""
        return combine([check_output(m(*args, **kwargs), self.space) for m in self.members], self.space, self.how)


@contextmanager
def answering(module: nn.Module, constituents: dict[int, Constituent], space: Space, how: How) -> Iterator[_Calls]:
    """Let `module(...)` answer with the aggregate; its submodules may not be called around it.

    Raises:
        UnsupportedError: inside, where a step calls a submodule directly.
    """
    names = [name for name, _ in module.named_parameters()] + [name for name, _ in module.named_buffers()]
    members = [{n: t[n].to(_device(module)) for n in names} for t in constituents.values()]
    calls, own = _Calls(), module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if calls.inside:
            return own(*args, **kwargs)
        calls.count += 1
        calls.inside = True
        try:
            outputs = [check_output(functional_call(module, m, args, kwargs), space) for m in members]
        finally:
            calls.inside = False
        return combine(outputs, space, how)

    with ExitStack() as stack:
        for name, part in module.named_modules():
            if part is not module and any(True for _ in part.parameters()):
                handle = part.register_forward_pre_hook(_guard(name, calls))
                stack.callback(handle.remove)
        module.forward = forward
        stack.callback(vars(module).pop, "forward", None)
        yield calls


class _Calls:
    """How often the aggregate answered, and whether it is answering now."""

    def __init__(self) -> None:
        self.count, self.inside = 0, False


def _guard(name: str, calls: _Calls) -> Any:
    def check(part: nn.Module, args: Any) -> None:
        if not calls.inside:
            raise UnsupportedError(
                f"an evaluation step calls {name} directly, so it would see one constituent instead of the aggregate. "
                "Call self(...) in the step, or evaluate record.aggregate(module) in a loop of your own."
            )

    return check


def _filled(module: nn.Module, tensors: Constituent) -> nn.Module:
    """Return a copy of a module with other parameters and buffers, free of its trainer."""
    own = vars(module).get("_trainer")
    if own is not None:
        vars(module)["_trainer"] = None
    try:
        member = copy.deepcopy(module)
    finally:
        if own is not None:
            vars(module)["_trainer"] = own
    with torch.no_grad():
        for name, tensor in _tensors(member, remove_duplicate=False).items():
            tensor.copy_(tensors[name])
    return member.cpu()


def _tensors(module: nn.Module, remove_duplicate: bool) -> Constituent:
    named = dict(module.named_parameters(remove_duplicate=remove_duplicate))
    return {**named, **dict(module.named_buffers(remove_duplicate=remove_duplicate))}


def _device(module: nn.Module) -> torch.device:
    for parameter in module.parameters():
        return parameter.device
    return torch.device("cpu")
