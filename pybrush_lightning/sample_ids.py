"""From a training loader to the rows PyBrush knows: ids, subjects, raw samples, and a forget set's rows.

The forget set is matched in this order: (1) by walking its Subset and ConcatDataset objects to the
training data set, which reads no data; (2) by its own ids; (3) by the content of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

from pybrush.content import encode
from pybrush.days import days_of
from pybrush.errors import ConfigurationError, IdError
from pybrush.hashing import chained
from pybrush.names import Namer
from pybrush.readings import check_fixed, check_seeded, spread
from pybrush.request import Roster
from pybrush_lightning.kinds import below
from pybrush_lightning.randomness import RANDOMNESS, kept_randomness, seed_all
from pybrush_lightning.stage_data import is_whole

IdSource = str | Sequence[Any] | Callable[[Any], Sequence[Any]]


@dataclass(frozen=True)
class Naming:
    """How the rows of a data set are named (the arguments of SISA).

    Attributes:
        ids: "content", "position", a column's name, a sequence, or a callable of the data set.
        subjects: a column's name, a sequence, a callable of the data set, or None.
        content: "digest" or "off".
        content_of: takes a raw sample and returns what of it is compared, for samples of other types.
        times: the date of each row: a column's name, a sequence, a callable of the data set, or None: when recorded.
    """

    ids: IdSource = "content"
    subjects: IdSource | None = None
    content: str = "digest"
    content_of: Callable[[Any], Any] | None = None
    times: IdSource | None = None

    def __post_init__(self) -> None:
        if self.content not in ("digest", "off"):
            raise ConfigurationError(f"content must be 'digest' or 'off'; got {self.content!r}.")
        if self.content == "off" and self.by_content:
            raise ConfigurationError(
                "content='off' leaves nothing to name rows by; pass ids=, or keep content='digest'."
            )

    @property
    def by_content(self) -> bool:
        """Whether rows are named by their content."""
        return isinstance(self.ids, str) and self.ids == "content"

    @property
    def kind(self) -> Literal["content", "ids", "position"]:
        """How samples get their ids, as the record writes it."""
        if self.by_content:
            return "content"
        return "position" if isinstance(self.ids, str) and self.ids == "position" else "ids"

    def roster(self, dataset: Any, namer: Namer) -> Roster:
        """Name the rows of a data set under a record's key."""
        ids = None if self.by_content else self.ids_of(dataset)
        subjects = None if self.subjects is None else [_people(row) for row in _column(self.subjects, dataset)]
        self._check(dataset)
        days = None if self.times is None else np.asarray(_column(self.times, dataset, days_of), dtype=np.int64)
        encode = None if self.content == "off" else self.reader(dataset)
        return Roster(namer, len(dataset), ids, subjects, encode, days)

    def _check(self, dataset: Any) -> None:
        """Refuse a data set whose rows cannot be trained on the same way twice, or not be named."""
        check_seeded(dataset, self.reader, RANDOMNESS, below)
        if self.content == "digest":
            check_fixed(dataset, self.reader, RANDOMNESS)

    def reader(self, dataset: Any) -> Callable[[int], bytes]:
        """Return position -> canonical bytes of the raw sample there, read in this process."""
        pick = self.content_of
        if pick is None:
            return lambda position: encode(dataset[position])
        return lambda position: encode(pick(dataset[position]))

    def ids_of(self, dataset: Any) -> list[Any]:
        """Return the id of each row of a data set; for data sets named by given ids."""
        if isinstance(self.ids, str) and self.ids == "position":
            return list(range(len(dataset)))
        return _column(self.ids, dataset)


def glimpse(naming: Naming, dataset: Any) -> str:
    """Return a digest by which processes see whether they hold the same rows: length, ids, and some samples.

    Another split or order shows in any of these. No secret is in it, so it is compared in memory and kept nowhere.
    """
    length = len(dataset)
    ids = b"" if naming.kind != "ids" else Namer(bytes(32)).samples(naming.ids_of(dataset)).tobytes()
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


def _listed(values: Any) -> list[Any]:
    return values.tolist() if isinstance(values, (np.ndarray, torch.Tensor)) else list(values)


def _column(source: IdSource, dataset: Any, read: Callable[[Any], Iterable[Any]] = _listed) -> list[Any]:
    """Return one entry for each row from a column's name, a sequence, or a callable of the data set.

    Args:
        source: where the entries come from.
        dataset: the data set.
        read: turns what was found there into entries.
    """
    if isinstance(source, str):
        rows = _named_column(source, dataset, read)
    else:
        rows = list(read(source(dataset) if callable(source) else source))
    if len(rows) != len(dataset):
        raise IdError(f"ids, subjects and times need one entry for each of the {len(dataset)} rows; got {len(rows)}.")
    return rows


def _named_column(name: str, dataset: Any, read: Callable[[Any], Iterable[Any]]) -> list[Any]:
    """Return a column by name: an attribute, a column of a table, or that of the data set below a Subset."""
    if isinstance(dataset, Subset):
        below = _column(name, dataset.dataset, read)
        return [below[int(i)] for i in dataset.indices]
    if name in (getattr(dataset, "column_names", None) or ()):
        return list(read(dataset[name]))
    if hasattr(dataset, name):
        return list(read(getattr(dataset, name)))
    raise IdError(
        f"the data set {type(dataset).__name__} has no column or attribute {name!r}; pass the name of one, a sequence "
        "with one entry a row, or a callable that takes the data set."
    )


def _people(entry: Any) -> tuple[Any, ...]:
    if entry is None:
        return ()
    return tuple(entry) if isinstance(entry, (list, tuple)) else (entry,)
