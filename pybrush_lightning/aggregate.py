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
from torch.utils.data import DataLoader, default_collate

from pybrush.attributes import Attributes, write_attributes
from pybrush.errors import ConfigurationError
from pybrush.record import Record
from pybrush_lightning import _private
from pybrush_lightning.attributes import known_parts
from pybrush_lightning.compiled import copied

Space = Literal["logits", "log_probs", "probs", "values"]
How = Literal["mean", "vote"]

_CHOICES = "Declare what the module returns: SISA(outputs='logits', 'log_probs', 'probs' or 'values')."


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
    # Half precision would round each of the steps.
    stack = torch.stack(outputs).to(torch.promote_types(own, torch.float32))
    if space == "values" or (space == "probs" and how == "mean"):
        return stack.mean(dim=0).to(own)
    if how == "vote":
        share = _shares(stack)
        return (share if space == "probs" else share.log()).to(own)
    return (torch.logsumexp(_log_softmax(stack), dim=0) - math.log(len(outputs))).to(own)


def _log_softmax(stack: Tensor) -> Tensor:
    """Return log-probabilities; torch's own takes up to four times as long where classes are few."""
    shifted = stack - stack.amax(dim=-1, keepdim=True)
    return shifted - shifted.exp().sum(dim=-1, keepdim=True).log()


def _shares(stack: Tensor) -> Tensor:
    """Return the smoothed share of votes of each class, over the first axis."""
    count, classes = stack.shape[0], stack.shape[-1]
    # Compared with each class and not one_hot, which cannot be exported.
    chosen = stack.argmax(dim=-1, keepdim=True) == torch.arange(classes, device=stack.device)
    return (chosen.sum(dim=0).to(stack.dtype) + 1 / classes) / (count + 1)


def answer(outputs: list[Any], space: Space, how: How) -> Tensor:
    """Return the aggregate of what the constituents returned, where the declared space can mean it.

    Raises:
        ConfigurationError: naming the four spaces.
    """
    tensors = [_one_tensor(output) for output in outputs]
    # A trace would keep the answers of its example; all constituents run the same code, so the first tells.
    if not (_is_traced() or tensors[0].is_meta):
        check_rows(tensors[0], space)
    return combine(tensors, space, how)


def check_rows(output: Tensor, space: Space) -> None:
    """Refuse outputs that the declared space cannot mean.

    Raises:
        ConfigurationError: naming the four spaces.
    """
    if space == "values" or output.numel() == 0:
        return
    if output.ndim < 2 or output.shape[-1] == 1:
        raise ConfigurationError(
            f"outputs={space!r} needs classes on the last axis; got {tuple(output.shape)}. {_CHOICES}"
        )
    if not output.is_floating_point():
        raise ConfigurationError(f"outputs={space!r} needs floating numbers; got {output.dtype}. {_CHOICES}")
    if space == "probs" and not _sum_to_one(output):
        raise ConfigurationError(f"outputs='probs', and rows do not sum to 1. {_CHOICES}")
    if space != "probs" and _sum_to_one(output):
        raise ConfigurationError(f"outputs={space!r}, and every row is a probability vector already. {_CHOICES}")


def check_target(batch: Any, space: Space) -> None:
    """Refuse a batch whose targets are no classes, where the module is said to return classes.

    Targets are seen where the batch is a pair. Rows of probabilities are classes too.

    Raises:
        ConfigurationError: naming the four spaces.
    """
    if space == "values" or not isinstance(batch, (tuple, list)) or len(batch) != 2:
        return
    target = batch[1]
    if isinstance(target, Tensor) and target.is_floating_point() and not (target.ndim > 1 and _sum_to_one(target)):
        raise ConfigurationError(
            f"outputs={space!r} are classes, and the target is floating: {target.dtype}, shape "
            f"{tuple(target.shape)}. {_CHOICES}"
        )


def check_first_target(loader: DataLoader[Any], space: Space) -> None:
    """Refuse floating targets before a record says that the module returns classes.

    Only torch's own collation is tried out on a row: another one may count or draw.

    Raises:
        ConfigurationError: naming the four spaces.
    """
    if loader.collate_fn is default_collate:
        row = loader.dataset[0]
        if isinstance(row, (tuple, list)) and len(row) == 2:
            check_target(default_collate([row]), space)


def _is_traced() -> bool:
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # torch has not typed it
    return tracing or torch.compiler.is_compiling()


def _one_tensor(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise ConfigurationError(
            f"the aggregate needs one tensor; the module returned {type(output).__name__}. {_CHOICES}"
        )
    return output


def _sum_to_one(output: Tensor) -> bool:
    """Whether every row is a probability vector, within the rounding of its type."""
    if not bool((output >= 0).all()):
        return False
    tolerance = max(1e-4, torch.finfo(output.dtype).eps)
    sums = output.sum(-1, dtype=torch.promote_types(output.dtype, torch.float32))
    return bool(((sums - 1).abs() <= tolerance).all())


def constituents_of(record: Record) -> dict[int, Constituent]:
    """Return each constituent of a record, by shard; inside of an evaluation loop, too, as tensors for any use."""
    return {shard: constituent_of(record, key) for shard, key in sorted(record.constituents().items())}


@torch.inference_mode(False)
def constituent_of(record: Record, key: str) -> Constituent:
    """Return what the state of a stage predicts with."""
    module = record.store.load(key)[0]["module"]
    return Constituent({**module["parameters"], **module["buffers"]}, module["attributes"])


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name; a tied tensor under each of its names."""
    named = dict(module.named_parameters(remove_duplicate=False))
    return {**named, **dict(module.named_buffers(remove_duplicate=False))}


class AggregateModule(nn.Module):
    """All constituents as one module: what a SISA record deploys.

    It answers as `module(...)` does, whatever a trainer's evaluation steps call. It can be copied, traced, exported
    and moved; where it is traced, outputs are not checked against the declared space.

    Args:
        module: the user's module; it is copied for each constituent.
        constituents: by shard.
        space: what the module returns.
        how: mean or vote.
    """

    @torch.inference_mode(False)
    def __init__(self, module: nn.Module, constituents: dict[int, Constituent], space: Space, how: How) -> None:
        super().__init__()
        self.space, self.how = space, how
        self.members = nn.ModuleList(filled(module, constituent) for constituent in constituents.values())
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the aggregate of the constituents' outputs for a batch."""
        return answer([member(*args, **kwargs) for member in self.members], self.space, self.how)


def filled(module: nn.Module, constituent: Constituent) -> nn.Module:
    """Return a copy of a module that is one constituent, on the CPU; Lightning's modules leave their trainer behind."""
    member = copied(module).cpu()
    if "forward" in vars(member) and getattr(member.forward, "__self__", None) is not member:
        raise ConfigurationError(
            "forward was set on the module itself, and that of a copy would run the original. Define it in the class."
        )
    own, stored = tensors_of(member), constituent.tensors
    if own.keys() != stored.keys() or any(own[name].shape != stored[name].shape for name in own):
        raise ConfigurationError(
            "the module has other parameters or buffers than the record; build it as it was trained."
        )
    for name, tensor in own.items():
        tensor.data = stored[name].clone()  # not copy_: a trainer's precision may have made the stored type
    known = known_parts(member)
    for name, part in member.named_modules():
        write_attributes(part, constituent.attributes.get(name, {}), known)
    _private.let_trace(member)
    return member
