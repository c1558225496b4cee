"""What is refused, with which words, and that nothing was touched by it.

Nothing touched: the same bytes and modes in every file of the record and beside it, and the model as it was.
"""

import shutil
import sqlite3
from contextlib import closing, contextmanager

import numpy as np
import pytest

from pybrush import forget
from pybrush.build import Sources
from pybrush.change import Change
from pybrush.content import encode
from pybrush.errors import (
    ConfigurationError,
    ContentError,
    CorruptRecordError,
    FingerprintError,
    ForgetError,
    IdError,
    LockedError,
    MissingRowsError,
    RecordError,
    SecretKeyError,
    UnknownSamplesError,
    UnsupportedError,
)
from pybrush.names import as_names
from pybrush.record import Record
from pybrush.record.resolve import Wish
from pybrush.request import strikes
from tests import reference
from tests.core.damage import cut, flip, stages
from tests.core.numpy_learner import NumpyLearner, roster_of, wish
from tests.core.processes import paused
from tests.core.small_record import IDS, SUBJECTS, N, cell_of, made, shard_of
from tests.core.test_fit_and_forget import KEY, assert_same_record, by_ids, data, fit, keep, unlearn
from tests.untouched import untouched


@contextmanager
def refused(folder, error, match):
    """Expect an error that leaves the record and its surroundings as they were."""
    with untouched(folder.parent), pytest.raises(error, match=match) as caught:
        yield caught


def refuses(folder, error, match, rows, ask, ids=None, subjects=None, **more):
    """Expect `unlearn` to refuse and to touch neither the record nor the model; return the message."""
    learner = NumpyLearner([9.0, 9.0, 9.0])
    with refused(folder, error, match) as caught:
        unlearn(folder, rows, ask, ids, subjects, learner=learner, **more)
    assert learner.weights.tolist() == [9.0, 9.0, 9.0] and learner.trained == []
    return str(caught.value)


def contents_of(rows, positions):
    return as_names(reference.content_digest(KEY, encode((rows[0][i], rows[1][i]))) for i in positions)


# What to forget


def test_unknown_ids_are_counted_and_named_by_at_most_five_pseudonyms(folder):
    unknown = [f"stranger-{i}" for i in range(7)]
    text = refuses(folder, UnknownSamplesError, "7 of 9 samples", data(N), by_ids([*IDS[:2], *unknown]), IDS)
    names = [reference.pseudonym(KEY, b"s:" + i.encode()).hex() for i in unknown]
    assert sum(name in text for name in names) == 5
    assert not any(i in text for i in (*unknown, *IDS))


def test_one_integer_is_not_the_text_of_its_digits(tmp_path):
    folder = made(tmp_path / "record", data(N), list(range(N)))
    refuses(folder, UnknownSamplesError, "1 of 1 samples", data(N), by_ids(["7"]), list(range(N)))


def test_unknown_subjects_and_contents_are_refused_as_unknown_ids_are(tmp_path):
    rows = data(N)
    folder = made(tmp_path / "record", rows, None, SUBJECTS)
    ask = lambda record: Wish(subjects=record.names.subjects(["subject-1", "nobody"]))  # noqa: E731
    refuses(folder, UnknownSamplesError, "1 of 2 subjects", rows, ask, None, SUBJECTS)
    ask = lambda _: Wish(contents=contents_of(data(N, seed=9), [0, 1]))  # noqa: E731
    refuses(folder, UnknownSamplesError, "2 of 2 samples", rows, ask, None, SUBJECTS)


@pytest.mark.parametrize("what", ["names", "contents", "subjects"])
def test_an_empty_forget_set_is_refused(what, folder):
    refuses(folder, ForgetError, "the forget set is empty", data(N), lambda _: Wish(**{what: as_names([])}), IDS)


def test_what_to_forget_is_said_in_exactly_one_way():
    none = as_names([])
    with pytest.raises(ForgetError, match="in one way"):
        Wish()
    with pytest.raises(ForgetError, match="in one way"):
        Wish(names=none, missing=True)
    with pytest.raises(ForgetError, match="goes alone"):
        Wish(subjects=none, missing=True)


def test_forgetting_everything_is_refused_since_nothing_would_be_left_to_train_on(folder):
    refuses(folder, ForgetError, "30 of 30 rows nothing is left", data(N), by_ids(IDS), IDS)
    assert unlearn(folder, data(N), by_ids(IDS[:-4]), IDS).forgotten == N - 4


def test_a_plan_under_which_no_shard_could_be_trained_is_refused_before_there_is_a_record(tmp_path):
    with untouched(tmp_path), pytest.raises(ConfigurationError, match="at least 2 rows; 1 rows in 3 shards"):
        fit(tmp_path / "record", data(1), ["only"], key=None)


ASKS = {
    "ids": lambda rows: (by_ids(IDS[3:5]), IDS, None, "all 2 were"),
    "content": lambda rows: (lambda _: Wish(contents=contents_of(rows, [3, 4])), None, None, "all 2 were"),
    "content of ids": lambda rows: (lambda _: Wish(contents=contents_of(rows, [3, 4])), IDS, None, "all 2 were"),
    "subjects": lambda rows: (lambda r: Wish(subjects=r.names.subjects(["subject-3"])), None, SUBJECTS, "all 1 were"),
    "both": lambda rows: (
        lambda r: Wish(contents=contents_of(rows, [3]), subjects=r.names.subjects(["subject-3"])),
        None,
        SUBJECTS,
        "all 1 were",
    ),
}


@pytest.mark.parametrize("how", ASKS)
def test_what_was_forgotten_before_is_passed_over_and_the_result_says_so(how, tmp_path):
    rows = data(N)
    ask, ids, subjects, said = ASKS[how](rows)
    folder = made(tmp_path / "record", rows, ids, subjects)
    unlearn(folder, rows, ask, ids, subjects)
    with untouched(tmp_path):
        result = unlearn(folder, rows, ask, ids, subjects)
    assert (result.method, result.request, result.forgotten, result.cost.stages_rebuilt) == ("none", 0, 0, 0)
    assert result.notes == (f"{said} forgotten before; nothing was left to do",)


def test_rows_named_again_beside_new_ones_are_counted_and_not_struck_twice(folder):
    unlearn(folder, data(N), by_ids(IDS[:2]), IDS)
    result = unlearn(folder, data(N), by_ids([*IDS[:3], IDS[2]]), IDS)
    assert result.forgotten == 1
    assert result.notes == ("2 rows were not in the model any more and were passed over",)


def test_missing_rows_are_forgotten_once_and_the_second_call_has_nothing_to_do(tmp_path, caplog):
    rows, left = data(N), np.arange(N) != 4
    folder = made(tmp_path / "record", rows)
    unlearn(folder, keep(rows, left), lambda _: Wish(missing=True))
    assert "still in the model" not in caplog.text  # they are what is being forgotten
    result = unlearn(folder, keep(rows, left), lambda _: Wish(missing=True))
    assert result.method == "none" and result.notes == ("no recorded row is absent; nothing was left to do",)


def test_contents_of_several_people_ask_whose_they_are(tmp_path):
    x, y = data(N)
    x[[3, 4]], y[[3, 4]] = x[3], y[3]
    folder, of_both = made(tmp_path / "record", (x, y), None, SUBJECTS), contents_of((x, y), [3])
    refuses(folder, ForgetError, "1 rows .* pass subjects=", (x, y), lambda _: Wish(contents=of_both), None, SUBJECTS)
    ask = lambda r: Wish(contents=of_both, subjects=r.names.subjects(["subject-4"]))  # noqa: E731
    result = unlearn(folder, (x, y), ask, None, SUBJECTS)
    assert (result.forgotten, result.audit["equal_rows_left"]) == (1, 1)
    left = np.arange(N) != 4
    fit(tmp_path / "twin", keep((x, y), left), None, [s for s in SUBJECTS if s is not SUBJECTS[4]])[0].record.close()
    assert_same_record(folder, tmp_path / "twin")


def test_contents_of_several_ids_ask_which_are_meant_unless_all_are(tmp_path):
    x, y = data(N)
    x[[3, 4, 5]], y[[3, 4, 5]] = x[3], y[3]
    folder, three = made(tmp_path / "record", (x, y), IDS), contents_of((x, y), [3, 4, 5])
    for some in (three[:1], three[:2]):
        refuses(folder, ForgetError, "pass ids= or", (x, y), lambda _, some=some: Wish(contents=some), IDS)
    left = ~np.isin(np.arange(N), (3, 4, 5))
    fit(tmp_path / "twin", keep((x, y), left), [i for i in IDS if i not in IDS[3:6]])[0].record.close()
    for number, ask in enumerate([Wish(contents=three), Wish(contents=three[:1], duplicates="forget")]):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(folder, copy)
        assert unlearn(copy, (x, y), lambda _, ask=ask: ask, IDS).forgotten == 3
        assert_same_record(copy, tmp_path / "twin")


def test_contents_are_no_names_where_the_record_keeps_no_digests(tmp_path):
    rows = data(N)
    folder = made(tmp_path / "record", rows, IDS, contents="off")
    refuses(folder, UnsupportedError, "no content digests", rows, lambda _: Wish(contents=contents_of(rows, [0])), IDS)


@pytest.mark.parametrize(("duplicates", "forgotten", "left"), [("report", 1, 2), ("forget", 3, 0)])
def test_equal_rows_are_reported_or_forgotten_as_asked(duplicates, forgotten, left, tmp_path):
    x, y = data(N)
    x[[3, 4, 5]], y[[3, 4, 5]] = x[3], y[3]
    folder = made(tmp_path / "record", (x, y), IDS)
    ask = lambda r: Wish(names=r.names.samples([IDS[3]]), duplicates=duplicates)  # noqa: E731
    result = unlearn(folder, (x, y), ask, IDS)
    assert (result.forgotten, result.audit["equal_rows_left"]) == (forgotten, left)
    assert any("duplicates='forget'" in note for note in result.notes) == (left > 0)
    again = unlearn(folder, (x, y), ask, IDS)
    assert (again.method, again.forgotten) == ("none", 0)


# Key


def test_a_key_of_another_record_or_of_another_length_is_refused(folder):
    with refused(folder, SecretKeyError, "another record's"):
        Record.open(folder, bytes(32))
    with refused(folder, SecretKeyError, "32 bytes; got 31 bytes"):
        Record.open(folder, bytes(31))
    with refused(folder, SecretKeyError, "another record's"):
        fit(folder, data(N), IDS, key=bytes(32))


def test_without_its_key_a_record_can_be_verified_and_nothing_can_be_forgotten(tmp_path):
    plan, rows = wish(key=None), data(N)
    forget.fit(tmp_path / "record", plan, NumpyLearner([0.1, 0.2, 0.3]), rows, roster_of(rows, IDS)).record.close()
    (tmp_path / "record.key").unlink()
    with closing(Record.open(tmp_path / "record")) as record:
        assert record.verify().is_clean
        with refused(tmp_path / "record", SecretKeyError, r"not found at .*record\.key"):
            record.names  # noqa: B018
    with refused(tmp_path / "record", SecretKeyError, "stay readable"):
        forget.fit(tmp_path / "record", plan, NumpyLearner([0.1, 0.2, 0.3]), rows, roster_of(rows, IDS))
    assert not (tmp_path / "record.key").exists()


def test_a_key_file_that_was_cut_is_not_replaced(tmp_path):
    (tmp_path / "record.key").write_bytes(b"short")
    with untouched(tmp_path), pytest.raises(SecretKeyError, match="32 bytes; got 5 bytes"):
        fit(tmp_path / "record", data(N), IDS, key=None)


# Model, data and settings


class Described(NumpyLearner):
    """Has a source text and a setting in its fingerprint."""

    def __init__(self, source, width=3):
        super().__init__([0.1, -0.2, 0.3])
        self.source, self.width = source, width

    def semantic(self, namer):
        return {**super().semantic(namer), "source": {"Net": self.source}, "hparams": {"width": self.width}}


def test_a_changed_fingerprint_is_refused_field_by_field_with_the_difference_of_the_sources(tmp_path):
    folder, rows = tmp_path / "record", data(N)
    source = "class Net:\n    depth = 1\n    bias = True\n"

    def fit_as(learner, **plan):
        return forget.fit(folder, wish(**plan), learner, rows, roster_of(rows, IDS)).record.close()

    fit_as(Described(source))
    with refused(folder, FingerprintError, r"2 fields differ") as caught:
        fit_as(Described(source.replace("1", "2"), width=4))
    text = str(caught.value)
    assert "hparams.width: recorded 3, now 4" in text
    assert "source.Net" in text and "-    depth = 1" in text and "+    depth = 2" in text
    for field, value in {"shards": 4, "slices": 1, "epochs": 9, "seed": 12, "order": "sequential"}.items():
        shown = "epochs_per_slice" if field == "epochs" else field
        with refused(folder, FingerprintError, rf"plan\.{shown}: recorded"):
            fit_as(Described(source), **{field: value})
    fit_as(Described(source), shards=None, slices=None, seed=None)


@pytest.mark.parametrize("what", [{"shards": 0}, {"slices": 1.5}, {"epochs": 0}, {"seed": 2**32}, {"seed": -1}])
def test_a_plan_of_impossible_numbers_is_refused(what):
    with pytest.raises(ConfigurationError, match=next(iter(what))):
        wish(**what)


def test_ids_that_are_repeated_in_the_data_set_are_counted_and_refused(folder, tmp_path):
    ids = [*IDS[:-3], IDS[0], IDS[0], IDS[1]]
    with untouched(tmp_path), pytest.raises(IdError, match="2 ids are repeated, on 5 rows"):
        fit(tmp_path / "new", data(N), ids, key=None)
    refuses(folder, IdError, "2 ids are repeated", data(N), by_ids(IDS[:1]), ids)


def test_equal_rows_without_ids_are_refused_under_a_loader_that_does_not_shuffle(tmp_path):
    x, y = data(N)
    x[[3, 4, 5]], y[[3, 4, 5]] = x[3], y[3]
    with untouched(tmp_path), pytest.raises(IdError, match="1 contents occur more than once"):
        fit(tmp_path / "record", (x, y), order="sequential", key=None)


def test_rows_that_are_gone_are_an_error_only_where_a_stage_to_be_trained_needs_them(folder):
    shard = shard_of(IDS[0])
    near = [i for i in range(1, N) if shard_of(IDS[i]) == shard][:2]
    far = [i for i in range(1, N) if shard_of(IDS[i]) != shard][:2]

    def without(lost):
        left = [i for i in range(N) if i not in lost]
        return keep(data(N), left), by_ids(IDS[:1]), [IDS[i] for i in left]

    text = refuses(folder, MissingRowsError, "2 of the 29 rows", *without(near))
    assert "random_split" in text and "changed preprocessing" in text and "missing=True" in text
    assert unlearn(folder, *without(far)).forgotten == 1


def test_contents_that_changed_under_their_ids_are_counted_and_refused(folder):
    x, y = data(N)
    shard = shard_of(IDS[0])
    for i in [i for i in range(1, N) if shard_of(IDS[i]) == shard][:3]:
        x[i] += 1
    refuses(folder, ContentError, "content of 3 rows", (x, y), by_ids(IDS[:1]), IDS)


def test_a_data_set_in_another_order_is_refused_where_the_loader_keeps_the_order(tmp_path):
    order = np.random.default_rng(0).permutation(N)
    ids = [IDS[i] for i in order]
    for kind in ("sequential", "shuffled"):
        folder = made(tmp_path / kind / "record", data(N), IDS, order=kind)
        if kind == "sequential":
            refuses(folder, ContentError, "another order", keep(data(N), order), by_ids(IDS[:1]), ids)
        else:
            assert unlearn(folder, keep(data(N), order), by_ids(IDS[:1]), ids).forgotten == 1


def test_a_content_that_another_id_still_has_is_not_marked_as_forgotten(tmp_path):
    x, y = data(N)
    x[7], y[7] = x[3], y[3]
    folder, marks = made(tmp_path / "record", (x, y), IDS), []
    for row in (3, 7):
        unlearn(folder, (x, y), by_ids([IDS[row]]), IDS)
        with closing(Record.open(folder, KEY)) as record:
            marks.append(len(record.ledger.rows("SELECT name FROM suppressions")))
    assert marks == [1, 3]  # a name; two names and their content


def test_missing_is_refused_on_a_data_set_that_changed_rather_than_shrank(tmp_path):
    x, y = data(N)
    folder = made(tmp_path / "record", (x, y))
    changed = x.copy()
    changed[:4] += 1
    ask = lambda _: Wish(missing=True)  # noqa: E731
    refuses(folder, ForgetError, "4 of 30 recorded rows are absent and 4 rows are new", (changed, y), ask)


def test_rows_that_were_forgotten_and_never_deleted_do_not_make_missing_rows_look_like_a_change(tmp_path):
    rows, ask = data(N), lambda _: Wish(missing=True)
    folder = made(tmp_path / "record", rows)
    unlearn(folder, rows, lambda _: Wish(contents=contents_of(rows, [0, 1])))
    left, file = np.arange(N) > 4, ~np.isin(np.arange(N), (2, 3, 4))
    assert unlearn(folder, keep(rows, file), ask).forgotten == 3
    fit(tmp_path / "twin", keep(rows, left))[0].record.close()
    assert_same_record(folder, tmp_path / "twin")


# Requests


def failing(folder, ids):
    """Leave a request pending whose training failed in the shard of the first id."""
    learner = NumpyLearner([9.0, 9.0, 9.0])
    learner.fail_at = shard_of(ids[0]), 1
    with pytest.raises(ArithmeticError) as caught:
        unlearn(folder, data(N), by_ids(ids), IDS, learner=learner)
    assert learner.weights.tolist() == [9.0, 9.0, 9.0]
    return caught.value


def test_a_request_that_fails_again_names_both_ways_out_and_one_of_them_works(folder):
    error = failing(folder, IDS[:1])
    assert "call unlearn again" in error.__notes__[0] and "cancel(1)" in error.__notes__[0]
    shard = shard_of(IDS[0])
    lost = next(i for i in range(1, N) if shard_of(IDS[i]) == shard)
    left = [i for i in range(N) if i != lost]
    with refused(folder, MissingRowsError, "in the data set") as caught:
        unlearn(folder, keep(data(N), left), by_ids(IDS[:1]), [IDS[i] for i in left])
    assert "cancel(1)" in caught.value.__notes__[0]
    with closing(Record.open(folder, KEY)) as record:
        record.cancel(1)
        assert record.verify().is_clean
        with pytest.raises(RecordError, match="request 2 is unknown"):
            record.cancel(2)


def test_the_next_request_finishes_a_pending_one_first_and_then_serves_its_own(folder, tmp_path):
    failing(folder, IDS[:1])
    assert "0 days old" in verified(folder).pending[0]
    foretold = unlearn(folder, data(N), by_ids(IDS[1:2]), IDS, dry_run=True)
    assert "request 1 is not finished and would be served first" in foretold.notes
    assert unlearn(folder, data(N), by_ids(IDS[1:2]), IDS).request == 2
    fit(tmp_path / "twin", keep(data(N), np.arange(N) > 1), IDS[2:])[0].record.close()
    assert_same_record(folder, tmp_path / "twin")


def test_a_wish_that_is_refused_leaves_a_pending_request_pending(folder):
    failing(folder, IDS[:1])
    refuses(folder, UnknownSamplesError, "1 of 1", data(N), by_ids(["nobody"]), IDS)
    assert "1: pending" in verified(folder).pending[0]


def verified(folder):
    with closing(Record.open(folder, KEY)) as record:
        return record.verify()


def of_another_request(path):
    """Exchange a pending file for a sound one that names other rows."""
    found = Change.from_bytes(path.read_bytes()).strikes
    path.write_bytes(Change(strikes(found.names ^ 1, found.contents, found.copies)).to_bytes())


@pytest.mark.parametrize("damage", [cut, flip, of_another_request, lambda path: path.unlink()])
def test_a_pending_file_that_was_damaged_is_found_and_its_request_can_be_withdrawn(damage, folder):
    failing(folder, IDS[:1])
    damage(folder / "pending" / "1")
    with refused(folder, CorruptRecordError, "pending"):
        verified(folder)
    for ask in (IDS[:1], IDS[1:2]):
        refuses(folder, CorruptRecordError, "pending", data(N), by_ids(ask), IDS)
    with refused(folder, CorruptRecordError, "pending"):
        fit(folder, data(N), IDS)
    with closing(Record.open(folder, KEY)) as record:
        record.cancel(1)
        assert record.verify().is_clean


def test_a_sealed_request_cannot_be_withdrawn(folder):
    unlearn(folder, data(N), by_ids(IDS[:1]), IDS)
    with closing(Record.open(folder, KEY)) as record, refused(folder, RecordError, "request 1 is sealed"):
        record.cancel(1)


class Waiting(NumpyLearner):
    """Pauses before its first stage."""

    def __init__(self, pause):
        super().__init__([0.1, -0.2, 0.3])
        self.pause = pause

    def train_stage(self, data, rows, horizon, seeds):
        if not self.trained:
            self.pause()
        return super().train_stage(data, rows, horizon, seeds)


def test_while_a_request_is_served_nothing_else_may_change_the_record(folder, tmp_path):
    busy = "another process serves a request"
    with paused(lambda pause: unlearn(folder, data(N), by_ids(IDS[:1]), IDS, learner=Waiting(pause))):
        refuses(folder, LockedError, busy, data(N), by_ids(IDS[1:2]), IDS)
        refuses(folder, LockedError, busy, data(N), by_ids(IDS[1:2]), IDS, dry_run=True)
        with refused(folder, LockedError, busy):
            fit(folder, data(N), IDS)
        with closing(Record.open(folder, KEY)) as record, refused(folder, LockedError, busy):
            record.cancel(1)
        found = verified(folder)
        assert "1: pending" in found.pending[0] and found.unwanted == () and found.missing == ()
    fit(tmp_path / "twin", keep(data(N), np.arange(N) > 0), IDS[1:])[0].record.close()
    assert_same_record(folder, tmp_path / "twin")


def test_a_stage_of_a_plan_that_a_request_changed_meanwhile_is_not_published(tmp_path):
    folder, rows = tmp_path / "record", data(N)
    victim = next(i for i in IDS if cell_of(i) == (0, 0))  # a row of the stage that is being trained

    def fit_slowly(pause):
        with pytest.raises(RecordError, match="changed while a state of it was made"):
            forget.fit(folder, wish(), Waiting(pause), rows, roster_of(rows, IDS))

    with paused(fit_slowly):
        unlearn(folder, rows, by_ids([victim]), IDS)
    left = [i for i in range(N) if IDS[i] != victim]
    fit(tmp_path / "twin", keep(rows, left), [IDS[i] for i in left])[0].record.close()
    assert_same_record(folder, tmp_path / "twin")
    assert list((folder / "tmp").iterdir()) == []


@pytest.mark.parametrize("asked", [IDS[:1], IDS[:2] + IDS[5:9], IDS[:27]])
def test_a_dry_run_touches_nothing_and_says_what_then_happens(asked, folder):
    register = stages(folder)[shard_of(IDS[0]), 1].name
    with closing(Record.open(folder, KEY)) as record:
        record.register_artefact(folder.parent / "last.ckpt", register, "checkpoint")
    (folder.parent / "last.ckpt").write_bytes(b"weights")
    learner = NumpyLearner([9.0, 9.0, 9.0])
    with untouched(folder.parent):
        foretold = unlearn(folder, data(N), by_ids(asked), IDS, learner=learner, dry_run=True)
    assert learner.weights.tolist() == [9.0, 9.0, 9.0] and foretold.model is None
    served = unlearn(folder, data(N), by_ids(asked), IDS, learner=learner)
    assert foretold.audit["artefacts"] == served.audit["artefacts_unlinked"] == [str(folder.parent / "last.ckpt")]
    assert set(foretold.audit["stages"]) == set(learner.trained)
    for name in ("forgotten", "shards", "left_out", "method", "guarantee"):
        assert getattr(foretold, name) == getattr(served, name)
    for name in ("stages_rebuilt", "stages", "visits", "retrain_visits"):
        assert getattr(foretold.cost, name) == getattr(served.cost, name)
    assert served.cost.stages_rebuilt == len(learner.trained)
    whole = served.cost.stages_rebuilt == served.cost.stages
    assert whole == any("full retrain" in note for note in foretold.notes)


def test_a_dry_run_of_what_was_forgotten_before_leaves_the_model_alone(folder):
    unlearn(folder, data(N), by_ids(IDS[:1]), IDS)
    learner = NumpyLearner([9.0, 9.0, 9.0])
    with untouched(folder.parent):
        foretold = unlearn(folder, data(N), by_ids(IDS[:1]), IDS, learner=learner, dry_run=True)
    assert learner.weights.tolist() == [9.0, 9.0, 9.0]
    assert foretold.notes == ("dry run: nothing was touched", "all 1 were forgotten before; nothing was left to do")


def test_a_dry_run_on_a_fit_that_was_not_finished_counts_the_stages_that_are_still_to_be_built(tmp_path):
    folder, learner = tmp_path / "record", NumpyLearner([0.1, -0.2, 0.3])
    learner.fail_at = (2, 1)
    with pytest.raises(ArithmeticError):
        forget.fit(folder, wish(), learner, data(N), roster_of(data(N), IDS))
    victim = next(i for i in IDS if shard_of(i) == 0)
    foretold = unlearn(folder, data(N), by_ids([victim]), IDS, dry_run=True)
    served = unlearn(folder, data(N), by_ids([victim]), IDS, learner=(learner := NumpyLearner([9.0, 9.0, 9.0])))
    assert (2, 1) in foretold.audit["stages"] and set(foretold.audit["stages"]) == set(learner.trained)
    assert foretold.cost.stages_rebuilt == served.cost.stages_rebuilt == len(learner.trained)


def test_a_failed_write_leaves_the_ledger_usable(folder):
    with closing(Record.open(folder, KEY)) as record:
        with pytest.raises(sqlite3.IntegrityError), record.ledger.writing("test"):
            record.ledger.change_many("INSERT INTO wanted VALUES (?)", [("new",), ("new",)])
        with record.ledger.writing("test"):
            record.ledger.append_event("tested")
        assert record.verify().is_clean


def test_a_learner_needs_no_record_object_to_be_closed_first(folder):
    with closing(Record.open(folder, KEY)) as record:
        sources = Sources(NumpyLearner([0.0] * 3), data(N), roster_of(data(N), IDS)(record.names))
        for one in IDS[:2]:
            ask = Wish(names=record.names.samples([one]))
            assert forget.unlearn(record, sources, ask, aggregate=lambda _: "model").model == "model"
        assert [request.state for request in record.requests] == ["sealed", "sealed"]
