"""SIGKILL at every step on disk of approximate requests, and of the exact ones that follow them.

Whatever the instant, the same call again ends in what the method leaves when nothing interrupts it, computed here by
hand; and an exact request after that in the bits of a fit that never held the rows.
"""

from contextlib import closing
from functools import partial

import numpy as np
import pytest

from pybrush.errors import RecordError
from pybrush.method import Portion
from pybrush.record import Record
from tests import reference
from tests.core import test_kill
from tests.core.numpy_learner import NumpyLearner
from tests.core.numpy_methods import Ascent, Shrink, by, exactly
from tests.core.test_fit_and_forget import KEY, by_ids, unlearn
from tests.core.test_kill import assert_finished, files_in, id_case, in_child, kill_points, leave_checkpoint, with_twins

scratch = test_kill.scratch

ROWS = (3, 8)


def serve(case, terms, folder):
    unlearn(folder, case.rows, by_ids([case.ids[i] for i in ROWS]), case.ids, terms=terms)


def constituents(folder):
    """Return shard -> (weights, positions of its rows) of a record."""
    with closing(Record.open(folder, KEY)) as record:
        states = {shard: record.store.load(key)[0] for shard, key in record.constituents().items()}
    return {shard: state["weights"] for shard, state in states.items()}


def shard_of(case, row):
    return reference.cell(reference.pseudonym(KEY, b"s:" + case.ids[row].encode()), 2, 2)[0]


def by_hand(case, method, weights, release):
    """Return shard -> weights after a method; the shards that it does not hit as they were."""
    found = dict(weights)
    for shard in {shard_of(case, row) for row in ROWS}:
        own = [row for row in range(14) if shard_of(case, row) == shard]
        forget, retain = (np.array([row for row in own if (row in ROWS) == gone]) for gone in (True, False))
        learner = NumpyLearner(weights[shard])
        seeds = partial(reference.release_seed, 11, release, shard)
        method.apply(learner, Portion(shard, case.rows, forget, retain, seeds, None))
        found[shard] = learner.weights
    return found


def assert_released(case, folder, method, before):
    """The request is sealed, serves what the method makes by hand, and left nothing else."""
    with closing(Record.open(folder, KEY)) as record:
        assert record.verify().is_clean
        assert [request.state for request in record.requests] == ["sealed"]
        release = record.ledger.rows("SELECT key FROM releases")[0][0]
        expected = {stage.key for stage in record.graph()} & record.store.keys()
        assert record.store.keys() == expected and record.store.release_keys() == set(record.stand_ins().values())
    served = constituents(folder)
    for shard, weights in by_hand(case, method, before, release).items():
        assert np.array_equal(served[shard], weights)
    assert not [path for path in files_in(folder) if path.startswith(("tmp/", "pending/", "quarantine/"))]
    assert reference.files_holding(folder, case.gone) == []


COMMITS = ("after commit accept", "before rename ", "before commit commit", "after commit commit", "after vacuum")


@pytest.mark.parametrize(
    ("method", "only"),
    [
        pytest.param(Ascent(), COMMITS, id="at commits"),
        pytest.param(Ascent(), ("",), id="ascent", marks=pytest.mark.long),
        pytest.param(Shrink(), ("",), id="shrink", marks=pytest.mark.long),
    ],
)
def test_an_approximate_request_killed_at_any_step_and_made_again_is_as_if_it_was_not_killed(method, only, scratch):
    case = id_case()
    base, twin = with_twins(case, scratch)
    before, steps = constituents(base), []
    work = partial(serve, case, by(method))
    announced = in_child(partial(work, test_kill._copy(base, scratch / "copy")))
    chosen = [step for step in announced if step.startswith(only)]
    for step, folder in kill_points(base, work, scratch, chosen):
        steps.append(step)
        serve(case, by(method), folder)
        assert_released(case, folder, method, before)
        serve(case, exactly(), folder)
        assert_finished(folder, twin, case.gone)
    assert {"after commit accept", "after commit commit", "after vacuum"} < set(steps)
    assert "after unlink last.ckpt" in announced
    assert announced.count("after write manifest.json") == len({shard_of(case, row) for row in ROWS})


@pytest.mark.long
def test_an_exact_request_killed_at_any_step_on_an_approximate_release_is_finished_by_the_same_call(scratch):
    case = id_case()
    base, twin = with_twins(case, scratch)
    serve(case, by(Shrink()), base)
    leave_edited_checkpoint(case, base)
    steps = []
    for step, folder in kill_points(base, partial(serve, case, exactly()), scratch):
        steps.append(step)
        serve(case, exactly(), folder)
        assert_finished(folder, twin, case.gone)
    assert {"after commit accept", "after commit commit", "after unlink last.ckpt"} < set(steps)


def leave_edited_checkpoint(case, folder):
    """Leave what a user's callback writes of the module that an approximate request left."""
    leave_checkpoint(
        folder,
        case.ids[next(row for row in range(14) if row not in ROWS and shard_of(case, row) == shard_of(case, ROWS[0]))],
    )


@pytest.mark.long
def test_a_request_of_another_kind_finishes_an_approximate_one_that_was_killed(scratch):
    case = id_case()
    base, twin = with_twins(case, scratch)
    for _, folder in kill_points(base, partial(serve, case, by(Ascent())), scratch):
        serve(case, exactly(), folder)  # by a rebuild where it was pending, after it where it was committed
        assert_finished(folder, twin, case.gone)


@pytest.mark.long
def test_a_fit_after_a_kill_finishes_what_is_committed_and_names_what_is_pending(scratch):
    case = id_case()
    base, _ = with_twins(case, scratch)
    before, states = constituents(base), set()
    for _, folder in kill_points(base, partial(serve, case, by(Ascent())), scratch):
        with closing(Record.open(folder, KEY)) as record:
            states.update(found := {request.state for request in record.requests})
        if found == {"pending"}:
            with pytest.raises(RecordError, match="waits for the method 'ascent'"):
                case.refit(folder)
        else:
            case.refit(folder)
        serve(case, by(Ascent()), folder)
        assert_released(case, folder, Ascent(), before)
    assert states == {"pending", "committed", "collected", "sealed"}


def test_a_withdrawal_of_an_approximate_request_killed_at_any_step_and_made_again_leaves_the_record_as_it_was(scratch):
    case = id_case()
    case.artefact = None
    case.make(scratch / "base")
    case.make(scratch / "twin")
    in_child(partial(serve, case, by(Ascent()), scratch / "base"), kill_at=last_publication(case, scratch))
    for _, folder in kill_points(scratch / "base", cancel, scratch):
        cancel(folder)
        assert_finished(folder, scratch / "twin", [])


def cancel(folder):
    with closing(Record.open(folder, KEY)) as record:
        record.cancel(1)


def last_publication(case, scratch):
    """Return the number of the step before the request commits: all that it made is there."""
    folder = test_kill._copy(scratch / "base", scratch / "copy")
    return in_child(partial(serve, case, by(Ascent()), folder)).index("before commit commit") + 1
