"""The global random generators of torch, beside those of Python and NumPy."""

from __future__ import annotations

from functools import cache

import torch

from pybrush.randomness import Randomness


@cache
def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


def _seed(seed: int) -> None:
    if _has_accelerator():
        torch.manual_seed(seed)
    else:
        # Without one torch.manual_seed formats the whole stack for a later seeding, milliseconds in each epoch.
        torch.default_generator.manual_seed(seed)


def _read() -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _write(state: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    cpu, cuda = state
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)


RANDOMNESS = Randomness("torch", _seed, _read, _write)
"""What user code in Lightning draws from, CUDA included."""

seed_all, kept_randomness = RANDOMNESS.seed_all, RANDOMNESS.kept
