"""What predicts after a SISA fit: all constituents together, in the model's own output space.

`combine` is the arithmetic and `AggregateModule` the one module to deploy. How a trainer's evaluation loops
answer with the aggregate is in `pybrush_lightning.evaluation`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pybrush.errors import ConfigurationError
from pybrush.record import Record
from pybrush_lightning.attributes import Attributes, known_parts, write_attributes
from pybrush_lightning.compiled import copied
from pybrush_lightning.state import fill

Space = Literal["logits", "log_probs", "probs", "values"]
How = Literal["mean", "vote"]
SPACES = ("logits", "log_probs", "probs", "values")


@dataclass(frozen=True)
class Constituent:
    """What one shard's model predicts with.

    Attributes:
        tensors: parameters and buffers by name.
        attributes: plain attributes of each submodule by its name.
    """

    tensors: dict[str, Tensor]
    attributes: dict[str, Attributes]


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
    own = outputs[0].dtype
    # Half precision would round each of the three steps.
    stack = torch.stack(outputs).to(torch.promote_types(own, torch.float32))
    return _combined(stack, space, how).to(own)


def _combined(stack: Tensor, space: Space, how: How) -> Tensor:
    """Return the aggregate over the first axis."""
    if space == "values":
        return stack.mean(dim=0)
    if how == "vote":
        classes, count = stack.shape[-1], len(stack)
        votes = nn.functional.one_hot(stack.argmax(dim=-1), classes).sum(dim=0).to(stack.dtype)
        share = (votes + 1 / classes) / (count + 1)
        return share if space == "probs" else share.log()
    if space == "probs":
        return stack.mean(dim=0)
    return torch.logsumexp(stack.log_softmax(dim=-1), dim=0) - math.log(len(stack))


def check_output(output: Any, space: Space) -> Tensor:
    """Refuse outputs that the declared space cannot mean.

    Raises:
        ConfigurationError: naming the four spaces.
    """
    choices = "Declare what the module returns: outputs='logits', 'log_probs', 'probs' or 'values'."
    if not isinstance(output, Tensor):
        raise ConfigurationError(
            f"the aggregate needs one tensor; the module returned {type(output).__name__}. {choices}"
        )
    if space == "values":
        return output
    if output.ndim < 2 or output.shape[-1] == 1:
        raise ConfigurationError(
            f"outputs={space!r} needs classes on the last axis; got {tuple(output.shape)}. {choices}"
        )
    sums_to_one = bool((output >= 0).all()) and torch.allclose(
        output.sum(-1), torch.ones_like(output.sum(-1)), atol=1e-4
    )
    if space != "probs" and sums_to_one:
        raise ConfigurationError(f"outputs={space!r}, and every row is a probability vector already. {choices}")
    if space == "probs" and not sums_to_one:
        raise ConfigurationError(f"outputs='probs', and rows do not sum to 1. {choices}")
    return output


def constituents_of(record: Record) -> dict[int, Constituent]:
    """Return each constituent of a record, by shard."""
    found = {}
    for shard, key in sorted(record.constituents().items()):
        module = record.store.load(key)[0]["module"]
        found[shard] = Constituent({**module["parameters"], **module["buffers"]}, module["attributes"])
    return found


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name; a tied tensor under each of its names."""
    named = dict(module.named_parameters(remove_duplicate=False))
    return {**named, **dict(module.named_buffers(remove_duplicate=False))}


class AggregateModule(nn.Module):
    """All constituents as one module: what a SISA record deploys.

    Args:
        module: the user's module; it is copied for each constituent.
        constituents: by shard.
        space: what the module returns.
        how: mean or vote.
    """

    def __init__(self, module: nn.Module, constituents: dict[int, Constituent], space: Space, how: How) -> None:
        super().__init__()
        self.space, self.how = space, how
        self.members = nn.ModuleList(_filled(module, constituent) for constituent in constituents.values())
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the aggregate of the constituents' outputs for a batch."""
        return combine([check_output(m(*args, **kwargs), self.space) for m in self.members], self.space, self.how)


def _filled(module: nn.Module, constituent: Constituent) -> nn.Module:
    """Return a copy of a module that is one constituent, on the CPU; Lightning's modules leave their trainer behind."""
    member = copied(module).cpu()
    own, stored = tensors_of(member), constituent.tensors
    if own.keys() != stored.keys() or any(own[name].shape != stored[name].shape for name in own):
        raise ConfigurationError(
            "the module has other parameters or buffers than the record; build it as it was trained."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            fill(tensor, stored[name])
    known = known_parts(member)
    for name, part in member.named_modules():
        write_attributes(part, constituent.attributes.get(name, {}), known)
    return member
