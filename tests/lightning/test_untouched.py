"""A request that is refused leaves the user's objects, their files and the record as they were, whatever is wrong."""

import shutil
import sqlite3
from contextlib import closing
from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch import callbacks as library
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Subset, TensorDataset

from pybrush.errors import (
    ConfigurationError,
    ContentError,
    CorruptRecordError,
    FingerprintError,
    ForgetError,
    GuaranteeError,
    IdError,
    LockedError,
    MissingRowsError,
    RecordError,
    SecretKeyError,
    UnknownSamplesError,
    UnsupportedError,
)
from pybrush.names import Namer
from pybrush.record import Record
from pybrush.record.locks import request_lock
from tests.core.processes import paused
from tests.lightning.models import Net, Rows
from tests.lightning.twin import KEY, Case, trainer_for
from tests.lightning.untouched import CallsNoted, Listening, by_fit, by_request

CASES = {
    "ids": Case(sisa={"ids": "names", "subjects": "owners"}, callbacks=(Listening,)),
    "content": Case(callbacks=(Listening,)),
}


def loader(rows=None, **settings):
    return DataLoader(Rows() if rows is None else rows, **({"batch_size": 5, "shuffle": True} | settings))


def trained(case, folder, **settings):
    """Return trainer and module of a fit with everything that could notice a request."""
    saving = library.ModelCheckpoint(folder / "saved", save_on_exception=True)
    extra = {"enable_checkpointing": True, "callbacks": [saving], "logger": CallsNoted()}
    return trainer_for(case, folder, **extra, **settings), Net()


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Return a function that returns the folder of a record of a case; each is fitted once."""
    folders = {}

    def folder_of(case):
        if case not in folders:
            folders[case] = tmp_path_factory.mktemp("once")
            trainer, module = trained(CASES[case], folders[case])
            trainer.fit(module, loader())
        return folders[case]

    return folder_of


@pytest.fixture
def later(once, tmp_path):
    """Return a function of a case: a trainer that has fitted nothing, a module, and a copy of the case's record."""

    def of(case, **settings):
        shutil.copytree(once(case) / "record", tmp_path / "record")
        module = Net().eval()
        module.net[0].requires_grad_(False)
        torch.manual_seed(4)
        return trained(CASES[case], tmp_path, **settings)[0], module

    return of


class Endless(IterableDataset):
    def __iter__(self):
        return iter(Rows())


class Changed(Rows):
    """Rows under their ids with other contents."""

    def __getitem__(self, row):
        x, y = super().__getitem__(row)
        return x + 1, y


def without(rows):
    return Rows(gone=rows)


def twice():
    """Rows of which two have one id."""
    rows = Rows()
    rows.names[5] = rows.names[4]
    return rows


def copied(rows):
    """The same rows as another data set, in another type."""
    held = Rows()
    return TensorDataset(held.x[rows].double(), held.y[rows])


def names(*rows):
    return [f"sample-number-{row:06d}" for row in rows]


DRAWING = DataLoader(Rows(), batch_size=5, sampler=RandomSampler(Rows(), num_samples=3))

FOR_IDS = {
    "unknown ids": ({"ids": names(99, 98)}, UnknownSamplesError, "2 of 2 samples"),
    "an id and an unknown one": ({"ids": names(3, 99)}, UnknownSamplesError, "1 of 2 samples"),
    "no ids": ({"ids": []}, ForgetError, "empty"),
    "an id of another type": ({"ids": [3]}, UnknownSamplesError, "1 of 1 samples"),
    "an id that is none": ({"ids": [3.0]}, IdError, "float"),
    "a text": ({"ids": "sample-number-000003"}, ForgetError, "takes a list"),
    "unknown subjects": ({"subjects": ["nobody"]}, UnknownSamplesError, "1 of 1 subjects"),
    "no subjects": ({"subjects": []}, ForgetError, "empty"),
    "rows that are gone": ({"rows": [0], "data": lambda: without([2, 4, 6])}, MissingRowsError, "random_split"),
    "other contents": ({"rows": [3], "data": lambda: Rows(seed=1)}, ContentError, "content of"),
    "ids that are repeated": ({"rows": [3], "data": twice}, IdError, "1 ids are repeated, on 2 rows"),
}
FOR_CONTENT = {
    "ids": ({"ids": names(3)}, ForgetError, "names samples by content"),
    "other rows": ({"forget": Rows(seed=1)}, UnknownSamplesError, "44 of 44 samples"),
    "rows of another type": ({"forget": copied([3, 4])}, UnknownSamplesError, "2 of 2 samples"),
    "rows without labels": ({"forget": TensorDataset(Rows().x[:3])}, UnknownSamplesError, "3 of 3 samples"),
    "missing from changed data": ({"missing": True, "data": lambda: Rows(seed=1)}, ForgetError, "content changed"),
    "rows that are gone": ({"rows": [0], "data": lambda: without([2, 4, 6])}, MissingRowsError, "random_split"),
}
FOR_BOTH = {
    "a row too far": ({"rows": [44]}, ForgetError, "outside of 0..43"),
    "a row before the first": ({"rows": [-1]}, ForgetError, "outside of 0..43"),
    "a mask": ({"rows": [True] * 44}, ForgetError, "whole numbers"),
    "no rows": ({"rows": []}, ForgetError, "empty"),
    "all rows": ({"rows": range(44)}, ForgetError, "nothing is left"),
    "an empty forget set": ({"forget": loader(Subset(Rows(), []), shuffle=False)}, ForgetError, "empty"),
    "a forget set of no kind": ({"forget": 3}, ConfigurationError, "map-style data set"),
    "a forget loader that draws": ({"forget": DRAWING}, ConfigurationError, "not certain"),
    "two ways at once": ({"rows": [3], "missing": True}, ForgetError, "in one way"),
    "no way at all": ({}, ForgetError, "in one way"),
    "nothing missing": ({"rows": [3], "data": Endless}, UnsupportedError, "IterableDataset"),
    "a method of another version": ({"rows": [3], "method": "scrub"}, GuaranteeError, "scrub"),
    "an unknown guarantee": ({"rows": [3], "guarantee": "likely"}, GuaranteeError, "likely"),
    "another word for duplicates": ({"rows": [3], "duplicates": "keep"}, ConfigurationError, "duplicates"),
    "data in two ways": ({"rows": [3], "datamodule": lightning.LightningDataModule()}, ConfigurationError, "not both"),
    "another order": ({"rows": [3], "loader": {"shuffle": False}}, FingerprintError, r"plan\.order"),
    "dropped batches": ({"rows": [3], "loader": {"drop_last": True}}, FingerprintError, r"loader\.drop_last"),
    "another collate function": (
        {"rows": [3], "loader": {"collate_fn": lambda batch: batch}}, FingerprintError, "collate_fn"
    ),
    "rows of another class": ({"rows": [3], "data": Changed}, FingerprintError, r"source\.Changed"),
}  # fmt: skip


ASKS = [(case, name) for case, asks in {"ids": FOR_IDS, "content": FOR_CONTENT}.items() for name in asks | FOR_BOTH]


@pytest.mark.parametrize(("case", "name"), ASKS, ids=lambda value: value)
def test_a_request_that_is_refused_leaves_everything_as_it_was(case, name, later, tmp_path):
    trainer, module = later(case)
    ask, error, said = (FOR_IDS if case == "ids" and name in FOR_IDS else FOR_CONTENT | FOR_BOTH)[name]
    given = {key: value for key, value in ask.items() if key not in ("data", "loader")}
    rows = ask.get("data", Rows)()
    settings = {} if isinstance(rows, IterableDataset) else {"shuffle": True} | ask.get("loader", {})
    given["train_dataloaders"] = DataLoader(rows, 5, **settings)
    for dry_run in (True, False):
        with by_request(trainer, module, tmp_path), pytest.raises(error, match=said) as caught:
            trainer.unlearn(model=module, dry_run=dry_run, **given)
        assert "sample-number" not in str(caught.value) or name == "a text"


# What is wrong with the record, its key, its place, or the trainer


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def of_version_two(record):
    with closing(sqlite3.connect(record / "ledger.sqlite")) as connection:
        connection.execute("PRAGMA user_version=2")


def constituent(record, shard):
    with closing(Record.open(record, KEY)) as opened:
        return opened.store.path(opened.constituents()[shard])


def another_stage(record, shard):
    place, other = constituent(record, shard), constituent(record, 1 - shard)
    shutil.rmtree(place)
    shutil.copytree(other, place)


def lose_rows(record):
    with closing(sqlite3.connect(record / "ledger.sqlite")) as connection:
        connection.execute("DELETE FROM samples WHERE shard = 1")
        connection.commit()


BOTH, UNLEARN = ("fit", "unlearn"), ("unlearn",)
WRONG = {
    "the initial state is cut": (lambda r: cut(r / "initial/tree.json"), {}, UNLEARN, CorruptRecordError, "initial"),
    "a kept constituent is cut": (
        lambda r: cut(constituent(r, 1) / "state.safetensors"), {}, BOTH, CorruptRecordError, "not the one"
    ),
    "a kept constituent lost its manifest": (
        lambda r: (constituent(r, 1) / "manifest.json").unlink(), {}, BOTH, CorruptRecordError, "cannot be read"
    ),
    "a kept constituent is another stage": (lambda r: another_stage(r, 1), {}, BOTH, CorruptRecordError, "belongs to"),
    "the ledger is cut": (lambda r: cut(r / "ledger.sqlite"), {}, BOTH, CorruptRecordError, None),
    "the ledger is of another version": (of_version_two, {}, BOTH, CorruptRecordError, "version 2"),
    "the ledger lost rows": (lose_rows, {}, BOTH, CorruptRecordError, "do not match their samples"),
    "the record is gone": (shutil.rmtree, {}, UNLEARN, RecordError, "no record"),
    "the key is lost": (None, {"sisa": {"key": None}}, BOTH, SecretKeyError, "stay readable"),
    "the key is another one": (None, {"sisa": {"key": bytes(32)}}, BOTH, SecretKeyError, "another record"),
    "the key is cut": (None, {"sisa": {"key": KEY[:9]}}, BOTH, SecretKeyError, "got 9 bytes"),
    "another seed": (None, {"sisa": {"seed": 6}}, BOTH, FingerprintError, r"plan\.seed"),
    "more shards": (None, {"sisa": {"shards": 3}}, BOTH, FingerprintError, r"plan\.shards"),
    "another precision": (None, {"precision": "bf16-mixed"}, BOTH, FingerprintError, r"trainer\.precision"),
    "half of what it is": (None, {"precision": "16-true"}, BOTH, UnsupportedError, "16-true"),
    "a trial run": (None, {"fast_dev_run": True}, UNLEARN, UnsupportedError, "fast_dev_run"),
    "a clock": (None, {"val_check_interval": "00:00:10:00"}, BOTH, UnsupportedError, "val_check_interval"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "call"), [(name, call) for name in WRONG for call in WRONG[name][2]])
def test_whatever_is_wrong_elsewhere_a_refusal_leaves_everything_as_it_was(name, call, later, tmp_path):
    spoil, settings, _, error, said = WRONG[name]
    trainer, module = later("ids", **settings)
    if call == "fit":  # inside of a fit Lightning has begun to log, and saves on exceptions
        trainer, module = trainer_for(CASES["ids"], tmp_path, **settings), Net()
    if spoil is not None:
        spoil(tmp_path / "record")
    kept = by_fit if call == "fit" else by_request
    row = row_of_shard(0)
    run = trainer.fit if call == "fit" else partial(trainer.unlearn, rows=[row])
    with kept(trainer, module, tmp_path), pytest.raises(error, match=said):
        run(model=module, train_dataloaders=loader())


def row_of_shard(shard):
    namer = Namer(KEY)
    return next(
        row for row, owner in enumerate(Rows().owners)
        if int.from_bytes(namer.subjects([owner]).tobytes()[:8], "little") % 2 == shard
    )  # fmt: skip


def test_while_another_process_serves_a_request_everything_stays_as_it_was(later, tmp_path):
    trainer, module = later("ids")
    record = tmp_path / "record"

    def held(pause):
        with request_lock(record):
            pause()

    with paused(held), by_request(trainer, module, tmp_path), pytest.raises(LockedError, match="another process"):
        trainer.unlearn(rows=[3], model=module, train_dataloaders=loader())
