"""What the core must know of torch's classes to look at data sets and at user code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from pybrush.reach import Kinds, Place
from pybrush_lightning import _private


def _version(tensor: torch.Tensor) -> str:
    return f"{id(tensor)} {tensor._version}"  # noqa: SLF001 (counts changes in place)


def _state(generator: torch.Generator) -> bytes:
    return generator.get_state().numpy().tobytes()


KINDS = Kinds(
    tensors={torch.Tensor: _version},
    generators={torch.Generator: _state},
    seeded=(torch.default_generator,),
    preparing=(Dataset,),
    closed=tuple(_private.trainer_classes()),
)
"""Tensors, generators, data sets and trainers of either Lightning package."""


def reading(loader: DataLoader[Any]) -> list[Place]:
    """Return what a loader reads rows by."""
    return [("dataset", loader.dataset), ("collate_fn", loader.collate_fn)]


def parts_of(dataset: Any) -> Sequence[Any]:
    """Return the data sets that one is directly cut or joined from."""
    if isinstance(dataset, Subset):
        return [dataset.dataset]
    return dataset.datasets if isinstance(dataset, ConcatDataset) else []
