"""The global random generators: seeding them, and leaving them as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch


@cache
def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch from 64 bits; NumPy takes the low half."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 (user code draws from the global generator)
    if _has_accelerator():
        torch.manual_seed(seed)
    else:
        # Without one torch.manual_seed formats the whole stack for a later seeding, milliseconds in each epoch.
        torch.default_generator.manual_seed(seed)


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Save the random generators of Python, NumPy and torch, CUDA included, and restore them at the end."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
