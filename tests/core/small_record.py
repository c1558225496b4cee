"""A record of thirty ids in three shards of two slices, and the calls that may be made on it."""

from contextlib import closing

from pybrush.record import Record
from tests import reference
from tests.core.test_fit_and_forget import KEY, by_ids, data, fit, unlearn

N = 30
IDS = [f"person-{i:012d}" for i in range(N)]
SUBJECTS = [[f"subject-{i % 10}"] for i in range(N)]


def made(folder, rows, ids=None, subjects=None, **plan):
    fit(folder, rows, ids, subjects, **plan)[0].record.close()
    return folder


def cell_of(sample_id):
    return reference.cell(reference.pseudonym(KEY, b"s:" + sample_id.encode()), 3, 2)


def shard_of(sample_id):
    return cell_of(sample_id)[0]


def first_in(cell):
    return next(i for i in IDS if cell_of(i) == cell)


def opened(work):
    def call(folder):
        with closing(Record.open(folder, KEY)) as record:
            work(record)

    return call


def forgetting(cell, **more):
    return lambda folder: unlearn(folder, data(N), by_ids([first_in(cell)]), IDS, **more)


READERS = {
    "open": opened(lambda record: None),
    "info": opened(lambda record: record.info()),
    "verify": opened(lambda record: record.verify()),
    "dry run": forgetting((0, 0), dry_run=True),
}
"""Calls that change nothing, whatever they find."""

WRITERS = {
    "fit": lambda folder: fit(folder, data(N), IDS)[0].record.close(),
    "unlearn": forgetting((0, 0)),
    "unlearn from a stage": forgetting((0, 1)),
    "cancel": opened(lambda record: record.cancel(1)),
    "withdraw": opened(lambda record: record.withdraw(1)),
    "enqueue": opened(lambda record: record.enqueue(ids=IDS[:1])),
    "amend": opened(lambda record: record.amend(IDS[:1])),
    "admit": opened(lambda record: record.admit()),
    "settle": opened(lambda record: record.settle()),
    "declare": opened(lambda record: record.declare("initial-state", "the weights were random")),
}
