"""A record of forty rows in three shards of two slices, on which approximate methods are tried."""

import shutil
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from pybrush.record import Record
from tests import reference
from tests.core.numpy_methods import by
from tests.core.test_fit_and_forget import KEY, assert_same_record, by_ids, data, fit, keep, unlearn

IDS = [f"person-{i:012d}" for i in range(40)]
NAMES = [reference.pseudonym(KEY, b"s:" + name.encode()) for name in IDS]
CELLS = [reference.cell(name, 3, 2) for name in NAMES]


def rows_of(shard, slice_=None):
    return [i for i in range(40) if CELLS[i][0] == shard and slice_ in (None, CELLS[i][1])]


def ids_of(rows):
    return by_ids([IDS[i] for i in rows])


def without(rows):
    return np.array([i not in rows for i in range(40)])


FIRST, SECOND = rows_of(0, 1)[:2], rows_of(1, 0)[:1]
"""Two rows of the second slice of shard 0; one of the first slice of shard 1."""


def fit_forty(folder):
    """Fit the record, close it, and return its folder and its data."""
    fit(folder, data(), IDS)[0].record.close()
    return folder, data()


def assert_as_never_held(folder, rows):
    """The record has the bits of one that was fitted without some rows, and no file of a release."""
    left, twin = without(rows), folder.with_name("twin")
    found, _ = fit(twin, keep(data(), left), [IDS[i] for i in range(40) if left[i]])
    found.record.close()
    assert_same_record(folder, twin)
    assert list((folder / "releases").iterdir()) == []
    shutil.rmtree(twin)


def opened(folder):
    return closing(Record.open(folder, KEY))


def weights_served(folder):
    with opened(folder) as record:
        return {shard: record.store.load(key)[0]["weights"] for shard, key in record.constituents().items()}


def shards_built(folder):
    """The shards of which the last stage has a state."""
    with opened(folder) as record:
        last = {stage.shard: stage.key for stage in record.graph()}
        return {shard for shard, key in last.items() if (record.store.stages / key).is_dir()}


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "lock" not in path.name}


def pending(folder, rows, method):
    """Leave an approximate request pending; its method fails."""
    with pytest.raises(ArithmeticError) as caught:
        unlearn(folder, rows, ids_of([*FIRST, *SECOND]), IDS, terms=by(replace(method, fail_at=1)))
    assert "cancel(1)" in caught.value.__notes__[0]
