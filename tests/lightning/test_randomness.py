"""Seeding gives the same numbers as torch's own, without its detour where there is no accelerator."""

import random

import numpy as np
import pytest
import torch

from pybrush_lightning.randomness import kept_randomness, seed_all


@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1, 2**63 + 17, 2**64 - 1])
def test_seeding_is_that_of_each_library(seed):
    with kept_randomness():
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        expected = random.random(), np.random.rand(), torch.rand(3).tolist(), torch.initial_seed()  # noqa: NPY002
        seed_all(seed + 1 if seed < 2**63 else 1)
        seed_all(seed)
        found = random.random(), np.random.rand(), torch.rand(3).tolist(), torch.initial_seed()  # noqa: NPY002
    assert found == expected
