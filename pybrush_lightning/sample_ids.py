"""From a training loader to the rows PyBrush knows: ids, subjects, raw samples, and a forget set's rows.

The forget set is matched in this order: (1) by walking its Subset and ConcatDataset objects to the
training data set, which reads no data; (2) by its own ids; (3) by the content of its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, DataLoader, Subset

from pybrush.asked import ForgetSet
from pybrush.errors import ConfigurationError
from pybrush.hashing import chained
from pybrush.names import Namer
from pybrush.naming import Naming, listed
from pybrush.readings import check_fixed, check_seeded, spread
from pybrush.request import Roster
from pybrush_lightning.kinds import parts_of
from pybrush_lightning.randomness import RANDOMNESS, kept_randomness, seed_all
from pybrush_lightning.stage_data import is_whole

_AUGMENTED = "Pass ids= and content='off', or content_of=, to SISA."
"""What to do where rows differ each time."""


@dataclass(frozen=True)
class TorchRows:
    """A map-style data set, as the core sees it.

    Attributes:
        source: the data set.
    """

    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: int, /) -> Any:
        return self.source[position]

    def column(self, name: str) -> Any:
        """Return an attribute, a column of a table, or that of the data set below a Subset; None without one."""
        dataset = self.source
        if isinstance(dataset, Subset):
            below = TorchRows(dataset.dataset).column(name)
            return None if below is None else _picked(below, dataset.indices)
        if name in (getattr(dataset, "column_names", None) or ()):
            return dataset[name]
        return getattr(dataset, name, None)


def roster_of(naming: Naming, dataset: Any, namer: Namer) -> Roster:
    """Name the rows of a data set under a record's key.

    Raises:
        ContentError: where its rows cannot be trained on the same way twice, or not be named.
    """
    check_seeded(dataset, naming.reader, RANDOMNESS, parts_of)
    if naming.content == "digest":
        check_fixed(dataset, naming.reader, RANDOMNESS, _AUGMENTED)
    return naming.roster(TorchRows(dataset), namer)


def find_in(dataset: Any, forget: Any) -> ForgetSet:
    """Take a forget loader or data set apart, beside the training data set.

    Raises:
        ConfigurationError: where it has no length or rows, or the loader's sampler leaves out or repeats rows.
    """
    forgotten = forget_dataset(forget)
    return ForgetSet(TorchRows(forgotten), rows_inside(forgotten, dataset))


def glimpse(naming: Naming, dataset: Any) -> str:
    """Return a digest by which processes see whether they hold the same rows: length, ids, and some samples.

    Another split or order shows in any of these. No secret is in it, so it is compared in memory and kept nowhere.
    """
    length = len(dataset)
    ids = b"" if naming.kind != "ids" else Namer(bytes(32)).samples(naming.ids_of(TorchRows(dataset))).tobytes()
    read = naming.reader(dataset) if naming.content == "digest" else lambda _: b""
    with kept_randomness():
        seed_all(0)  # augmentation is refused elsewhere, by its name
        samples = [read(position) for position in spread(length)]
    return chained("pybrush-meaning", str(length).encode(), ids, *samples).hex()


def forget_dataset(forget: Any) -> Any:
    """Return the data set of a forget loader or data set.

    Raises:
        ConfigurationError: where it has no length or rows, or the loader's sampler leaves out or repeats rows.
    """
    dataset = forget.dataset if isinstance(forget, DataLoader) else forget
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ConfigurationError(
            "the forget set must be a DataLoader over a map-style data set, or such a data set; "
            f"got {type(forget).__name__}."
        )
    if isinstance(forget, DataLoader) and not is_whole(forget):
        raise ConfigurationError(
            f"the forget loader draws its rows by {type(forget.sampler).__name__}, so which rows are meant is not "
            "certain. Pass a Subset of the data set, or a loader over one."
        )
    return dataset


def rows_inside(dataset: Any, training: Any) -> list[int] | None:
    """Return the positions in the training data set that another one is made of, or None if it is another.

    Follows Subset and ConcatDataset; reads no sample.
    """
    if dataset is training:
        return list(range(len(training)))
    if isinstance(dataset, Subset):
        below = rows_inside(dataset.dataset, training)
        if below is not None:
            return [below[int(i)] for i in dataset.indices]
        return _shared_base(dataset, training)
    if isinstance(dataset, ConcatDataset):
        parts = [rows_inside(part, training) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [row for part in parts for row in part or ()]
    return None


def _shared_base(dataset: Subset[Any], training: Any) -> list[int] | None:
    """Return positions where forget and training set are both cut from one data set."""
    if not isinstance(training, Subset) or training.dataset is not dataset.dataset:
        return None
    place = {int(index): position for position, index in enumerate(training.indices)}
    try:
        return [place[int(index)] for index in dataset.indices]
    except KeyError:
        return None


def _picked(column: Any, indices: Any) -> Any:
    """Return some entries of a column, as an array where it is one: a list of dates may lose their unit."""
    if hasattr(column, "__array__"):
        return np.asarray(column)[np.asarray(indices, dtype=np.int64)]
    entries = listed(column)
    return [entries[int(index)] for index in indices]
