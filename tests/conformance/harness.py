"""What every framework's side of the suite offers, and what is compared. No framework is imported here.

A `Training` is what a user has in one process: a model, a SISA callback, and the rows that it was given. The same
rows, as NumPy arrays, and the same initial weights go into each framework.
"""

import importlib
import os
import random
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pybrush.names import Namer
from pybrush.record import Record
from pybrush.request import Roster
from pybrush.result import UnlearnResult
from tests.core import format_reader

KEY, SEED = bytes(range(32)), 5
ROWS, FEATURES, HIDDEN, CLASSES = 44, 6, 12, 3

ADAPTERS = {
    "lightning": "tests.conformance.on_lightning",
    "keras-tensorflow": "tests.conformance.on_keras",
    "keras-torch": "tests.conformance.on_keras",
}


@dataclass(frozen=True, eq=False)
class Table:
    """Rows as arrays, with an id, a subject and a day each."""

    x: np.ndarray
    y: np.ndarray
    ids: tuple[str, ...]
    subjects: tuple[str, ...]
    days: tuple[str, ...]

    def __len__(self):
        return len(self.y)

    def at(self, rows: Sequence[int]) -> "Table":
        """Return some rows, in that order."""
        rows = list(rows)
        columns = (tuple(column[row] for row in rows) for column in (self.ids, self.subjects, self.days))
        return Table(self.x[rows].copy(), self.y[rows].copy(), *columns)

    def without(self, rows: Sequence[int]) -> "Table":
        """Return all other rows."""
        return self.at([row for row in range(len(self)) if row not in set(rows)])

    def relabelled(self, rows: Sequence[int]) -> "Table":
        """Return all rows, some of which have another label."""
        y = self.y.copy()
        y[list(rows)] = (y[list(rows)] + 1) % CLASSES
        return replace(self, y=y)

    def with_equal(self, rows: Sequence[int]) -> "Table":
        """Return all rows, some of which equal the first of these."""
        x, y = self.x.copy(), self.y.copy()
        x[list(rows)], y[list(rows)] = x[rows[0]], y[rows[0]]
        return replace(self, x=x, y=y)


@cache
def table() -> Table:
    """Return the rows that all tests are about."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(ROWS, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, ROWS)
    days = (f"2026-{1 + row // 28:02d}-{1 + row % 28:02d}" for row in range(ROWS))
    ids = (f"sample-number-{row:06d}" for row in range(ROWS))
    return Table(x, y, tuple(ids), tuple(f"owner-number-{row % 11:06d}" for row in range(ROWS)), tuple(days))


INPUTS = np.random.default_rng(3).normal(size=(16, FEATURES)).astype(np.float32)
"""What models are asked about."""


def initial_weights(seed: int = 1) -> list[np.ndarray]:
    """Return kernel and bias of each dense layer; a kernel has the shape (inputs, outputs)."""
    rng = np.random.default_rng(seed)
    shapes = [(FEATURES, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,)]
    return [(0.4 * rng.normal(size=shape)).astype(np.float32) for shape in shapes]


@dataclass(frozen=True)
class Setup:
    """What a user decided.

    Attributes:
        network: "regular" has BatchNorm and Dropout, "dense" is dense layers alone, "watching" notes its batches.
        optimizer: "adam", "momentum" or "plain".
        named: "content", "ids" or "position".
        has_subjects: whether rows belong to subjects.
        has_days: whether rows have dates of their own.
        sequential: whether rows keep their order.
        saves: how the framework's own ModelCheckpoint saves into folder / "saved": "every epoch" or "the last";
            "" for no checkpoints.
        validated: whether something is validated in each epoch.
    """

    shards: int | None = 2
    slices: int | None = 2
    epochs: int = 2
    network: str = "regular"
    optimizer: str = "adam"
    rate: float = 0.05
    named: str = "ids"
    has_subjects: bool = False
    has_days: bool = False
    sequential: bool = False
    encrypt: bool | None = None
    saves: str = ""
    validated: bool = False
    batch_size: int = 8
    seed: int | None = SEED
    key: bytes = KEY

    def names_of(self, rows: Table) -> dict[str, Any]:
        """Return the arguments of SISA that name rows."""
        ids = list(rows.ids) if self.named == "ids" else self.named
        named: dict[str, Any] = {"ids": ids}
        if self.has_subjects:
            named["subjects"] = list(rows.subjects)
        if self.has_days:
            named["times"] = list(rows.days)
        return named

    def arguments(self, folder: Path, rows: Table) -> dict[str, Any]:
        """Return all arguments of SISA."""
        own = {"shards": self.shards, "slices": self.slices, "key": self.key, "seed": self.seed}
        more = {"encrypt": self.encrypt, "outputs": "logits", "record": Path(folder) / "record"}
        return {**own, **more, **self.names_of(rows)}

    def later(self) -> "Setup":
        """Return what a later process says, which leaves to the record what the record knows."""
        return replace(self, shards=None, slices=None, seed=None, encrypt=None, batch_size=5)


class TroubleError(Exception):
    """Raised on purpose."""


@dataclass
class Switch:
    """What goes wrong in this process: at the n-th time that training passes a place.

    Attributes:
        place: "begin" of a stage, "epoch begin", "batch", "epoch" (its end), or "end" of a stage.
        left: how often the place is still to be passed.
        kills: whether the process is killed there; otherwise an error is raised.
        seconds: how long each batch is made to take.
        drawn: where user code draws at the begin of each stage and epoch, what it drew; None where it does not.
    """

    place: str = ""
    left: int = 0
    kills: bool = False
    seconds: float = 0.0
    drawn: list | None = None

    def passing(self, place: str) -> None:
        """Do what was set, where this is the place; nothing changes where nothing was."""
        if place == "batch" and self.seconds:
            time.sleep(self.seconds)
        if place == self.place:
            self.left -= 1
            if self.left == 0 and self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.left == 0:
                raise TroubleError(place)

        if self.drawn is not None and place in ("begin", "epoch begin"):
            self.drawn.append((place, random.random(), float(np.random.random())))  # noqa: NPY002

    def set(
        self, place: str = "", left: int = 0, kills: bool = False, seconds: float = 0.0, draws: bool = False
    ) -> None:
        """Set what goes wrong; without arguments nothing does."""
        self.place, self.left, self.kills, self.seconds = place, left, kills, seconds
        self.drawn = [] if draws else None


SWITCH = Switch()


class Training(Protocol):
    """Model, SISA callback and rows of one process.

    Attributes:
        model: the user's model.
        sisa: the callback.
        rows: what the data set holds.
    """

    model: Any
    sisa: Any
    rows: Table

    def fit(self) -> None:
        """Fit the model with the framework's own fit."""

    def unlearn(self, **asked: Any) -> UnlearnResult:
        """Ask for what is to be forgotten; a training that fitted nothing passes model and data."""

    def save(self, path: Path) -> Path:
        """Save the model by hand, in the framework's own way; return the file, which has a suffix of its own."""

    def roster(self, namer: Namer) -> Roster:
        """Return the names of the rows."""

    def part(self, start: int, stop: int) -> Any:
        """Return some rows as the framework's own data, made of the same object."""

    def snapshot(self) -> dict[str, Any]:
        """Return everything that an error must leave as it was, by name."""


class Framework(Protocol):
    """One framework.

    Attributes:
        adapter: the name under which records note it.
    """

    adapter: str

    def training(self, folder: Path, setup: Setup, rows: Table, weights: int = 1) -> Training:
        """Return a training with the record folder / "record"; `weights` is the seed of the initial weights."""

    def data(self, rows: Table) -> Any:
        """Return rows as the framework's own data."""

    def weights(self, model: Any) -> list[np.ndarray]:
        """Return kernel and bias of each dense layer, then everything else that a model holds."""

    def constituents(self, record: Record) -> dict[int, list[np.ndarray]]:
        """Return the same of each constituent."""

    def predict(self, model: Any, x: np.ndarray) -> np.ndarray:
        """Return what a model, or an aggregate, answers."""

    def scale(self, learner: Any, factor: float) -> None:
        """Multiply the dense layers of a learner's model."""

    def spoil(self, model: Any) -> None:
        """Overwrite what a model holds, as a user may."""

    def seen(self) -> list[np.ndarray]:
        """Return the first feature of each row of each batch that "watching" networks saw, and forget them."""


def load(adapter: str) -> Framework:
    """Return the framework's side of the suite."""
    framework: Framework = importlib.import_module(ADAPTERS[adapter]).FRAMEWORK
    return framework


# What is compared


def opened(folder: Path):
    """Open the record of a folder for a with statement."""
    return closing(Record.open(folder / "record", KEY))


COLUMNS = {
    "samples": "name, placement, shard, slice, content, copies",
    "cells": "shard, slice, rows, digest",
    "subjects": "subject, name",
    "wanted": "key",
}


def ledger_of(record: Record) -> dict[str, Any]:
    """Return what the ledger says of samples, cells, subjects and stages, and the order of the samples."""
    found: dict[str, Any] = {
        name: sorted(map(repr, record.ledger.rows(f"SELECT {columns} FROM {name}")))
        for name, columns in COLUMNS.items()
    }
    placed = record.ledger.rows("SELECT position, name FROM samples WHERE position IS NOT NULL")
    found["order"] = [name for _, name in sorted(placed)]
    return found


def assert_same_record(one: Path, other: Path) -> None:
    """Same cells, keys and stages, with the same bits in every state, in two records without defects."""
    with opened(one) as a, opened(other) as b:
        told = ledger_of(a), ledger_of(b)
        assert not [name for name in told[0] if told[0][name] != told[1][name]]
        assert len(a.graph()) > 0 and a.constituents() == b.constituents()
        assert a.store.keys() == b.store.keys() == a.ledger.wanted()
        for key in a.store.keys() | {"initial"}:
            (tree_a, tensors_a), (tree_b, tensors_b) = a.store.packed(key), b.store.packed(key)
            assert tree_a == tree_b and tensors_a.keys() == tensors_b.keys(), key
            assert all(np.array_equal(tensors_a[name], tensors_b[name]) for name in tensors_a), key
        for record in (a, b):
            assert record.verify().is_clean
    for folder in (one, other):
        assert list(format_reader.defects(format_reader.read_record(folder / "record"))) == []


def same_bits(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    """Whether two lists of arrays are equal, bit for bit."""
    pairs = zip(one, other, strict=True)
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


def assert_same_constituents(framework: Framework, one: Path, other: Path) -> None:
    """The weights of every constituent have the same bits in two records."""
    with opened(one) as a, opened(other) as b:
        first, second = framework.constituents(a), framework.constituents(b)
    assert first.keys() == second.keys() and len(first) > 0
    assert all(same_bits(first[shard], second[shard]) for shard in first)


def names_of(folder: Path) -> set[bytes]:
    """Return the pseudonyms that a record holds."""
    with opened(folder) as record:
        return {name.tobytes() for name in record.samples().names}


def in_cell(shard: int, slice_: int, shards: int = 2, slices: int = 2) -> list[int]:
    """Return the rows whose ids lie in a cell, as docs/record_format.md places them."""
    names = [format_reader.pseudonym(KEY, name) for name in table().ids]
    return [row for row, name in enumerate(names) if format_reader.cell(name, shards, slices) == (shard, slice_)]
