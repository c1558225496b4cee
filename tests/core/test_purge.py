"""purge="list": files of user code that a request leaves are listed, told of as incomplete, and settled later."""

import json
from contextlib import closing

import pytest

from pybrush.errors import ConfigurationError, ErasureError
from pybrush.record import Record
from pybrush.record.resolve import Wish
from tests.core import format_reader as reader
from tests.core.numpy_learner import NumpyLearner
from tests.core.test_fit_and_forget import KEY, data, fit, keep, unlearn
from tests.core.test_fit_and_forget import assert_same_record as assert_same

IDS = list(range(30))


def shard_of(sample_id):
    return reader.cell(reader.pseudonym(KEY, sample_id), 3, 2)[0]


def in_shard(shard):
    return [i for i in IDS if shard_of(i) == shard]


@pytest.fixture
def record(tmp_path):
    """A record with a checkpoint of the constituent of each shard, one of them inside its folder."""
    found, _ = fit(tmp_path / "a", data(30), IDS)
    for shard, key in found.constituents.items():
        leave(found.record, checkpoint(tmp_path / "a", shard), key)
    found.record.close()
    return tmp_path / "a"


def leave(record, path, key):
    record.register_artefact(path, key, "checkpoint")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"weights")


def checkpoint(folder, shard):
    return (folder / "logs" if shard == 0 else folder.parent / "saved") / f"{shard}.ckpt"


def ask(ids, purge):
    return lambda record: Wish(names=record.names.samples(ids), purge=purge)


def forgotten(folder, ids, purge="list", **more):
    return unlearn(folder, data(30), ask(ids, purge), IDS, **more)


def state_of(folder):
    with closing(Record.open(folder, KEY)) as record:
        rows = record.ledger.rows("SELECT path, request FROM artefacts ORDER BY path")
        return {path.rpartition("/")[2]: request for path, request in rows}


def test_a_file_that_is_left_makes_the_request_incomplete_and_says_so_everywhere(record, tmp_path):
    path = checkpoint(record, 0)
    result = forgotten(record, in_shard(0)[:1])
    assert path.read_bytes() == b"weights"
    assert not result.is_complete and result.audit["artefacts_left"] == [str(path)]
    assert "artefacts_unlinked" not in result.audit and result.audit["stages_unlinked"] > 0
    assert any(note.startswith("incomplete: 1 files") for note in result.notes)
    page = result.report(tmp_path / "page.html").read_text()
    assert "incomplete" in page and str(path) in page
    assert state_of(record) == {"0.ckpt": 1, "1.ckpt": None, "2.ckpt": None}
    with closing(Record.open(record, KEY)) as opened:
        assert opened.info().artefacts.left == 1
        assert [request.state for request in opened.requests] == ["sealed"]
        with pytest.raises(ErasureError, match=r"logs/0\.ckpt.*record\.settle\(\)"):
            opened.verify()


def test_the_bits_do_not_depend_on_what_becomes_of_files(record, tmp_path):
    forgotten(record, in_shard(0)[:1])
    left = [i for i in IDS if i != in_shard(0)[0]]
    fit(tmp_path / "b", keep(data(30), left), left)[0].record.close()
    with closing(Record.open(record, KEY)) as opened:
        opened.settle()
    assert_same(record, tmp_path / "b")


def settle(folder):
    with closing(Record.open(folder, KEY)) as record:
        assert record.settle() == (str(checkpoint(folder, 0)),)


WAYS = {
    "record.settle": (settle, 1),
    "the user": (lambda folder: checkpoint(folder, 0).unlink(), 0),
    "the same request again": (lambda folder: forgotten(folder, in_shard(0)[:1], "delete"), 1),
    "a request for others": (lambda folder: forgotten(folder, in_shard(1)[:1], "delete"), 1),
}


@pytest.mark.parametrize(("way", "events"), WAYS.values(), ids=WAYS.keys())
def test_a_file_that_was_left_is_settled_by(way, events, record):
    forgotten(record, in_shard(0)[:1])
    way(record)
    assert not checkpoint(record, 0).exists() and checkpoint(record, 2).exists()
    with closing(Record.open(record, KEY)) as opened:
        assert opened.verify().is_clean and opened.info().artefacts.left == 0
        told = opened.ledger.rows("SELECT body FROM events WHERE kind = 'settled'")
        assert [json.loads(body) for (body,) in told] == [{"artefacts": 1}] * events


def test_a_repeated_request_says_what_it_removed_of_what_was_left_and_what_still_is(record):
    ids = in_shard(0)[:1]
    forgotten(record, ids)
    again = forgotten(record, ids)
    assert not again.is_complete and again.audit == {"artefacts_left": [str(checkpoint(record, 0))]}
    last = forgotten(record, ids, "delete")
    assert last.is_complete and last.audit == {"artefacts_unlinked": [str(checkpoint(record, 0))]}


def test_files_stay_with_the_request_that_left_them_and_all_are_listed(record):
    forgotten(record, in_shard(0)[:1])
    result = forgotten(record, in_shard(1)[:1])
    assert result.audit["artefacts_left"] == sorted(str(checkpoint(record, shard)) for shard in (0, 1))
    assert state_of(record) == {"0.ckpt": 1, "1.ckpt": 2, "2.ckpt": None}
    checkpoint(record, 0).unlink()
    result = forgotten(record, in_shard(1)[1:2])
    assert result.audit["artefacts_left"] == [str(checkpoint(record, 1))]
    assert state_of(record) == {"1.ckpt": 2, "2.ckpt": None}, "what is gone needs no row"


def test_a_file_that_was_announced_and_never_written_is_not_left(record):
    checkpoint(record, 0).unlink()
    result = forgotten(record, in_shard(0)[:1])
    assert result.is_complete and result.audit["absent"] == [str(checkpoint(record, 0))]
    with closing(Record.open(record, KEY)) as opened:
        assert opened.verify().is_clean
        assert opened.ledger.rows("SELECT * FROM events WHERE kind = 'left'") == []


def test_a_dry_run_tells_which_files_would_stay_or_go(record):
    ids, path = in_shard(0)[:1], str(checkpoint(record, 0))
    foretold = forgotten(record, ids, dry_run=True)
    assert foretold.audit["artefacts_left"] == [path] and "artefacts" not in foretold.audit
    assert not foretold.is_complete and any("incomplete" in note for note in foretold.notes)
    assert forgotten(record, ids, "delete", dry_run=True).audit["artefacts"] == [path]
    forgotten(record, ids)
    assert forgotten(record, ids, "delete", dry_run=True).audit["artefacts"] == [path]
    both = [path, str(checkpoint(record, 1))]
    assert forgotten(record, in_shard(1)[:1], "delete", dry_run=True).audit["artefacts"] == sorted(both)
    assert checkpoint(record, 0).exists() and checkpoint(record, 1).exists()


def test_cancelling_another_request_keeps_what_was_left_on_purpose(record):
    forgotten(record, in_shard(0)[:1])
    learner = NumpyLearner([9.0] * 3)
    learner.fail_at = (2, 1)
    with pytest.raises(ArithmeticError):
        forgotten(record, [in_shard(2)[0]], "delete", learner=learner)
    with closing(Record.open(record, KEY)) as opened:
        opened.cancel(2)
    assert checkpoint(record, 0).exists() and state_of(record) == {"0.ckpt": 1, "1.ckpt": None, "2.ckpt": None}


def test_a_file_that_is_written_anew_for_another_stage_is_no_longer_left(record):
    forgotten(record, in_shard(0)[:1])
    with closing(Record.open(record, KEY)) as opened:
        leave(opened, checkpoint(record, 0), opened.constituents()[0])
        assert opened.verify().is_clean and opened.settle() == ()
    assert checkpoint(record, 0).exists() and state_of(record)["0.ckpt"] is None


def test_another_word_than_delete_and_list_is_refused(record):
    with pytest.raises(ConfigurationError, match="purge must be 'delete' or 'list'; got 'keep'"):
        forgotten(record, in_shard(0)[:1], "keep")
