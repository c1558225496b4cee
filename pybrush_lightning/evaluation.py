"""How validate, test and predict are answered by the aggregate, through the user's own steps.

While `answering` is on, one part of the module, most often the module itself, runs every constituent and returns
their aggregate; a step that calls another part around it would see one constituent, so that raises. Nothing
is left on the module afterwards. Guide: docs/pitfalls.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pybrush.attributes import Attributes, plain_attributes
from pybrush.errors import TrainingError, UnsupportedError
from pybrush.record import trees
from pybrush.replaced import replaced
from pybrush_lightning.aggregate import Constituent, How, Space, answer, check_target, tensors_of
from pybrush_lightning.aggregate_step import AggregateStep, check_part, forms, steps_replaced
from pybrush_lightning.attributes import known_parts, placed_like, pointed_elsewhere
from pybrush_lightning.codec import content_bytes
from pybrush_lightning.compiled import uncompiled

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_WAYS = (
    "Call self(...) in the step; or name the part that every step calls, SISA(aggregate_step='net'); or pass "
    "SISA(aggregate_step=f), f(module, batch, batch_idx) that calls module(...); or evaluate "
    "record.aggregate(module) in a loop of your own."
)


class Calls:
    """How often the aggregate answered, and whether it is answering now."""

    def __init__(self) -> None:
        self.count, self.inside = 0, False


class Evaluation:
    """One trainer's evaluation loops: begins and ends answering with the aggregate.

    Args:
        step: what evaluation steps call, see `AggregateStep`.
    """

    def __init__(self, step: AggregateStep) -> None:
        self.part, self._step = forms(step)
        self._stack, self._calls = ExitStack(), Calls()
        self._space: Space | None = None

    def begin(self, module: nn.Module, constituents: dict[int, Constituent], space: Space, how: How) -> None:
        """Let a module that holds one of the constituents answer with all of them."""
        self._calls = self._stack.enter_context(answering(module, constituents, space, how, self.part))
        if self._step is not None:
            self._stack.enter_context(steps_replaced(module, self._step))
        self._space = space

    def check_batch(self, batch: Any) -> None:
        """Refuse targets that the declared space cannot mean, while the aggregate answers."""
        if self._space is not None:
            check_target(batch, self._space)

    def end(self, trainer: Trainer) -> None:
        """Stop answering at the end of a loop.

        Raises:
            TrainingError: where no step asked the aggregate, on any rank: one may have no batch where another has some.
        """
        begun, count = self._space is not None, self._calls.count
        self.close()
        if begun and not trainer.strategy.reduce_boolean_decision(count > 0, all=False):
            called = f"self.{self.part}(...)" if self.part else "self(...)"
            raise TrainingError(
                f"no evaluation step called {called}, so nothing was answered by the aggregate. {_WAYS} They are "
                "arguments of the trainer at hand; nothing needs to be trained again."
            )

    def close(self) -> None:
        """Stop answering, also where a loop was interrupted."""
        self._stack.close()
        self._space = None


def held_shard(module: nn.Module, constituents: dict[int, Constituent]) -> int | None:
    """Return the shard whose constituent equals a module's parameters and buffers bit for bit, or None."""
    own = tensors_of(module)
    for shard, constituent in constituents.items():
        stored = constituent.tensors
        if own.keys() == stored.keys() and all(_same_bits(own[name], stored[name]) for name in own):
            return shard
    return None


@contextmanager
def answering(
    module: nn.Module, constituents: dict[int, Constituent], space: Space, how: How, part: str = ""
) -> Iterator[Calls]:
    """Let a part of a module answer with the aggregate; what differs between constituents may not be called around it.

    Args:
        module: one of the constituents; the others run in its place, so that what steps and hooks set on it counts.
        constituents: by shard.
        space: what the part returns.
        how: mean or vote.
        part: name of a submodule; "" is the module itself.

    Raises:
        ConfigurationError: where there is no such part.
        UnsupportedError: where parameters beside the part differ; inside, where a step calls a submodule around it.
    """
    check_part(module, part)
    different = _different(constituents)
    _check_beside(module, part, different)
    members = [_Member(module, constituent) for constituent in constituents.values()]
    target, calls = module.get_submodule(part), Calls()
    own = target.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if calls.inside:
            return own(*args, **kwargs)
        calls.count += 1
        calls.inside = True
        try:
            outputs = [member(own, args, kwargs) for member in members]
        finally:
            calls.inside = False
        return answer(outputs, space, how)

    with ExitStack() as stack:
        stack.enter_context(uncompiled(module))
        for name, submodule in module.named_modules():
            if submodule is not target and not _leads_to(name, part) and _any_below(name, different):
                guarded = _guarded(submodule.forward, name, part, calls)
                stack.enter_context(replaced(submodule, forward=guarded))
        stack.enter_context(replaced(target, forward=forward))
        yield calls


class _Member:
    """One constituent, run by the user's module in the place of what that holds.

    The user's own module runs, not a copy: a step may set what forward reads, and forward may log. Tensors are
    exchanged, not overwritten, so that gradients of inputs and caches of casts stay with their constituent;
    and in the dictionaries that hold them, since torch.func.functional_call looks every name up at each
    call, which takes longer than a small model.
    """

    def __init__(self, module: nn.Module, constituent: Constituent) -> None:
        self.exchanged: list[tuple[dict[str, Any], dict[str, Any]]] = []
        stand_ins: dict[int, Tensor] = {}
        for name, part in module.named_modules():
            for kind in ("_parameters", "_buffers"):
                slots: dict[str, Tensor | None] = vars(part)[kind]
                own = {last: tensor for last, tensor in slots.items() if tensor is not None}
                prefix = f"{name}." if name else ""
                new = {last: _placed(constituent.tensors[prefix + last], tensor) for last, tensor in own.items()}
                stand_ins |= {id(tensor): new[last] for last, tensor in own.items()}
                self.exchanged.append((slots, new))
        different = _different_attributes(module, constituent)
        for part in module.modules():
            self.exchanged.append((vars(part), pointed_elsewhere(part, stand_ins) | different.get(part, {})))
        self.exchanged = [(holder, new) for holder, new in self.exchanged if new]

    def __call__(self, forward: Any, args: Any, kwargs: Any) -> Any:
        before = [(holder, {name: holder[name] for name in new}) for holder, new in self.exchanged]
        for holder, new in self.exchanged:
            holder.update(new)
        try:
            return forward(*args, **kwargs)
        finally:
            for holder, own in before:
                holder.update(own)


@torch.inference_mode(False)
def _placed(stored: Tensor, own: Tensor) -> Tensor:
    """Return a stored tensor on the device of the module's own one, and as a parameter where that is one."""
    placed = stored.to(own.device)
    return nn.Parameter(placed, requires_grad=False) if isinstance(own, nn.Parameter) else placed


def _different_attributes(module: nn.Module, constituent: Constituent) -> dict[nn.Module, Attributes]:
    """Return the plain attributes in which a constituent differs from what the module holds now."""
    known, found = known_parts(module), {}
    for name, part in module.named_modules():
        own, stored = plain_attributes(part, known), constituent.attributes.get(name, {})
        other = [n for n, value in stored.items() if n in own and not _equal(own[n], value)]
        found[part] = {n: placed_like(stored[n], vars(part)[n]) for n in other}
    return found


def _equal(own: Any, stored: Any) -> bool:
    (tree, arrays), (stored_tree, stored_arrays) = trees.pack(own), trees.pack(stored)
    return tree == stored_tree and all((arrays[name] == stored_arrays[name]).all() for name in arrays)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return content_bytes(one) == content_bytes(other)


def _different(constituents: dict[int, Constituent]) -> set[str]:
    """Return the names of the tensors that are not the same in all constituents."""
    first, *others = (constituent.tensors for constituent in constituents.values())
    return {n for n in first if any(n not in other or not _same_bits(first[n], other[n]) for other in others)}


def _any_below(name: str, tensors: set[str]) -> bool:
    """Whether a submodule holds one of these tensors, also in a submodule of its own."""
    return any(tensor.startswith(f"{name}.") for tensor in tensors)


def _leads_to(name: str, part: str) -> bool:
    """Whether a part lies in a submodule of this name."""
    return name == "" or part.startswith(f"{name}.")


def _check_beside(module: nn.Module, part: str, different: set[str]) -> None:
    """Refuse parameters that a step may use beside the part that answers, without calling anything."""
    if not part:
        return
    named = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    beside = sorted(name for name in different.intersection(named) if _leads_to(name.rpartition(".")[0], part))
    if beside:
        raise UnsupportedError(
            f"{', '.join(beside)} of the constituents differ and lie outside of aggregate_step={part!r}; a step that "
            "uses them would see one constituent. Name a part that holds them, or pass a function of (module, batch, "
            "batch_idx) as aggregate_step= that calls module(...)."
        )


def _guarded(own: Any, name: str, part: str, calls: Calls) -> Any:
    """Return a submodule's forward that runs inside of a constituent alone."""
    where = f"calls {name}, which lies outside of aggregate_step={part!r}," if part else f"calls {name} directly,"

    # In place of forward and not a hook: hooks switch off the fast paths of torch's own layers.
    def forward(*args: Any, **kwargs: Any) -> Any:
        if calls.inside:
            return own(*args, **kwargs)
        raise UnsupportedError(
            f"an evaluation step {where} so it would see one constituent instead of the aggregate. {_WAYS}"
        )

    return forward
