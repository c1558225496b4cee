"""What the core must know of torch's classes to look at data sets and at user code: which are cut from which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import ConcatDataset, Subset


def parts_of(dataset: Any) -> Sequence[Any]:
    """Return the data sets that one is directly cut or joined from."""
    if isinstance(dataset, Subset):
        return [dataset.dataset]
    return dataset.datasets if isinstance(dataset, ConcatDataset) else []
