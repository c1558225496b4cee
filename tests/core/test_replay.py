"""Replay: what trains to the stored state, what does not, and that nothing is touched by finding out."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pybrush.build import Sources, holdings_of
from pybrush.errors import ConfigurationError, ContentError, MissingRowsError, RecordError
from pybrush.record import Record
from pybrush.record.compare import Tolerance, compare_states
from pybrush.record.trees import pack
from pybrush.replay import replay
from tests.core import numpy_learner
from tests.core.forging import contents, forge
from tests.core.numpy_learner import NumpyLearner, roster_of
from tests.core.test_fit_and_forget import KEY, by_ids, data, fit, keep, unlearn

IDS = list(range(40))
EXACT = Tolerance(absolute=0, relative=0)


@pytest.fixture
def folder(tmp_path):
    fitted, _ = fit(tmp_path / "a", data(), IDS)
    fitted.record.close()
    return tmp_path / "a"


def replayed(folder, rows=None, ids=IDS, learner=None, **more):
    """Replay as a new process would, and look that record and model are as before, whatever comes of it."""
    rows, learner = rows or data(), learner or NumpyLearner([9.0, 9.0, 9.0])
    before, model = contents(folder), learner.read_state()
    with closing(Record.open(folder, KEY)) as record:
        sources = Sources(learner, rows, roster_of(rows, ids)(record.names))
        try:
            return replay(record, sources, **more)
        finally:
            assert contents(folder) == before
            assert pack(learner.read_state())[0] == pack(model)[0]
            assert np.array_equal(learner.weights, model["weights"])


def outcomes(found):
    return {(stage.shard, stage.slice): stage.outcome for stage in found.stages}


def cells(folder):
    with closing(Record.open(folder, KEY)) as record:
        return [(stage.shard, stage.slice) for stage in record.graph()]


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_every_stage_of_a_fit_and_of_a_request_replays_to_the_same_bits(tmp_path, order):
    fit(tmp_path / "a", data(), IDS, order=order)
    for _ in range(2):
        found = replayed(tmp_path / "a", stages="all", tolerance=EXACT)
        assert outcomes(found) == dict.fromkeys(cells(tmp_path / "a"), "bit_identical")
        assert found.outcome == "bit_identical" and found.of == len(found.stages)
        for stage in found.stages:
            assert [(group.name, group.tensors, group.differing) for group in stage.groups] == [
                ("velocity", 1, 0), ("weights", 1, 0)]  # fmt: skip
            assert stage.places == stage.environment == ()
        unlearn(tmp_path / "a", data(), by_ids([3, 17]), IDS)


def test_without_a_request_the_cheapest_stage_is_replayed_and_then_those_that_the_last_one_rebuilt(folder):
    with closing(Record.open(folder, KEY)) as record:
        fewest = min(stage.rows for stage in record.graph())
    (cheapest,) = replayed(folder).stages
    assert cheapest.rows == fewest
    before = contents(folder)
    unlearn(folder, data(), by_ids([3]), IDS)
    new = {path.split("/")[-2] for path in contents(folder).keys() - before.keys() if "stages" in path}
    assert {stage.key for stage in replayed(folder).stages} == new and new
    unlearn(folder, data(), by_ids([3]), IDS)  # does nothing, and is no request
    assert {stage.key for stage in replayed(folder).stages} == new


def test_stages_that_were_named_are_replayed_parents_first(folder):
    found = replayed(folder, stages=[(1, 1), (1, 0)])
    assert list(outcomes(found)) == [(1, 0), (1, 1)] and found.of == len(cells(folder))


@pytest.mark.parametrize("stages", [[(7, 0)], [(0, 0), (0, 9)], [], "some", [3], [(0, 0, 0)], 5, None])
def test_stages_that_the_record_does_not_have_are_refused(folder, stages):
    with pytest.raises(ConfigurationError, match="stages"):
        replayed(folder, stages=stages)


@pytest.mark.parametrize("bad", [-1e-9, float("nan"), float("inf"), "1e-3", True, None])
@pytest.mark.parametrize("name", ["absolute", "relative"])
def test_a_tolerance_that_is_no_number_of_at_least_zero_is_refused(name, bad):
    with pytest.raises(ConfigurationError, match=f"the {name} tolerance"):
        Tolerance(**{name: bad})


def test_a_stage_without_a_state_is_refused(folder):
    with closing(Record.open(folder, KEY)) as record:
        stage = record.graph()[0]
        record.store.discard(stage.key)
    with pytest.raises(RecordError, match=rf"no state of stage \({stage.shard}, {stage.slice}\)"):
        replayed(folder, stages="all")


def test_rows_that_are_gone_or_changed_are_refused_where_a_stage_needs_them_and_only_there(folder):
    with closing(Record.open(folder, KEY)) as record:
        samples = record.samples()
        at = int(samples.find(record.names.samples([4]))[0])
        shard, others = int(samples.shards[at]), [(s, r) for s, r in cells(folder) if s != samples.shards[at]]
    left = np.array(IDS) != 4
    changed = data()
    changed[0][4] += 1
    for rows, ids, error in ((keep(data(), left), [i for i in IDS if i != 4], MissingRowsError),
                             (changed, IDS, ContentError)):  # fmt: skip
        with pytest.raises(error):
            replayed(folder, rows, ids, stages=[cell for cell in cells(folder) if cell[0] == shard])
        assert replayed(folder, rows, ids, stages=others, tolerance=EXACT).outcome == "bit_identical"


def test_an_error_in_training_leaves_model_and_record_as_they_were(folder):
    learner = NumpyLearner([1.0, 2.0, 3.0])
    learner.fail_at = cells(folder)[-1]
    with pytest.raises(ArithmeticError):
        replayed(folder, learner=learner, stages="all")


# What replay notices


def trained_again(folder, shard, cell, extra=(), **settings):
    """Return the state of a stage that was trained with further rows or other settings, and how many steps it took."""
    rows, learner = data(), NumpyLearner([0.1, -0.2, 0.3])
    with closing(Record.open(folder, KEY)) as record, pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setattr(numpy_learner, name, value)
        from pybrush import build
        from pybrush.plan.outlook import Outlook

        stage = next(stage for stage in record.graph() if (stage.shard, stage.slice) == (shard, cell))
        sources = Sources(learner, rows, roster_of(rows, IDS)(record.names))
        samples = record.samples()
        found = holdings_of(record, samples, sources.roster).stage_rows(samples, shard, cell)
        if extra:
            names = record.names.samples(list(extra))
            found = replace(
                found,
                names=np.vstack([found.names, names]),
                positions=np.concatenate([found.positions, np.array(extra)]),
                copies=np.concatenate([found.copies, np.zeros(len(extra), dtype=found.copies.dtype)]),
            )
        manifest = build.train(record, sources, stage, found, Outlook(), "")
    return learner.read_state(), manifest


def test_a_stage_that_was_trained_on_a_row_that_the_ledger_no_longer_has_is_a_mismatch(folder):
    result = unlearn(folder, data(), by_ids([3]), IDS)
    with closing(Record.open(folder, KEY)) as record:
        shard, cell = record.requests[-1].outcome["rebuilt"][-1]
    state, manifest = trained_again(folder, shard, cell, extra=[3])
    forge(folder, shard, cell, lambda _: state, steps=manifest.steps, learning_rate_sum=manifest.learning_rate_sum)
    found = replayed(folder)
    assert result.cost.stages_rebuilt == len(found.stages)
    assert outcomes(found)[shard, cell] == found.outcome == "mismatch"


def test_a_stage_that_was_trained_at_another_learning_rate_is_a_mismatch(folder):
    state, _ = trained_again(folder, 1, 0, RATE=0.1001)
    forge(folder, 1, 0, lambda _: state)
    assert outcomes(replayed(folder, stages="all"))[1, 0] == "mismatch"


def test_a_manifest_that_tells_of_other_steps_is_a_mismatch(folder):
    forge(folder, 1, 0, lambda state: state, steps=1)
    (stage,) = replayed(folder, stages=[(1, 0)]).stages
    assert stage.outcome == "mismatch" and stage.places == ("manifest.steps",)


@pytest.mark.parametrize(
    ("by", "outcome"), [(1e-12, "within_tolerance"), (1e-2, "mismatch"), (np.nan, "mismatch"), (np.inf, "mismatch")]
)
def test_changed_weights_are_within_the_tolerance_that_was_said_before_or_a_mismatch(folder, by, outcome):
    forge(folder, 1, 1, lambda state: {**state, "weights": state["weights"] + [0, by, 0]})
    found = replayed(folder, stages=[(1, 1)])
    assert found.outcome == outcome and found.tolerance == Tolerance()
    (velocity, weights) = found.stages[0].groups
    assert (velocity.differing, weights.differing) == (0, 1)
    assert weights.absolute == pytest.approx(abs(by) if np.isfinite(by) else np.inf, rel=1e-3)
    assert replayed(folder, stages=[(1, 1)], tolerance=EXACT).outcome == "mismatch"
    if np.isfinite(by):
        assert replayed(folder, stages=[(1, 1)], tolerance=Tolerance(absolute=0.1)).outcome == "within_tolerance"


@pytest.mark.parametrize("drop", [np.zeros_like, lambda velocity: None], ids=["zeroed", "left out"])
def test_an_optimizer_state_that_was_dropped_is_a_mismatch_of_its_stage_and_of_the_next(folder, drop):
    forge(folder, 1, 0, lambda state: {**state, "velocity": drop(state["velocity"])})
    (first,) = replayed(folder, stages=[(1, 0)]).stages
    assert first.outcome == "mismatch"
    assert first.places == ("velocity",) or first.groups[0].absolute > 1e-3
    if first.places == ():  # the next stage starts from another velocity than when it was trained
        assert replayed(folder, stages=[(1, 1)]).outcome == "mismatch"


def test_a_stage_replays_to_the_same_bits_from_a_parent_that_was_exchanged_before_it_was_trained(folder):
    """Replay of one stage says nothing of its parent: that takes the replay of all stages of the shard."""
    forge(folder, 1, 0, lambda state: {**state, "weights": state["weights"] + 1})
    state, _ = trained_again(folder, 1, 1)
    forge(folder, 1, 1, lambda _: state)
    assert replayed(folder, stages=[(1, 1)]).outcome == "bit_identical"
    assert outcomes(replayed(folder, stages=[(1, 0), (1, 1)])) == {(1, 0): "mismatch", (1, 1): "bit_identical"}


class Forgetful(NumpyLearner):
    """Never keeps its velocity from one stage to the next."""

    def train_stage(self, data, rows, horizon, seeds):
        self.velocity = np.zeros_like(self.weights)
        return super().train_stage(data, rows, horizon, seeds)

    def read_state(self):
        return {**super().read_state(), "velocity": None}


def test_an_optimizer_state_that_is_never_kept_is_beyond_replay(tmp_path):
    """The comparison with a plain loop notices it (tests/core/test_fit_and_forget.py)."""
    from pybrush import forget

    forget.fit(tmp_path / "a", numpy_learner.wish(), Forgetful([0.1, -0.2, 0.3]), data(), roster_of(data(), IDS))
    assert replayed(tmp_path / "a", learner=Forgetful([9.0, 9.0, 9.0]), stages="all").outcome == "bit_identical"


def test_another_environment_is_named(folder):
    forge(folder, 1, 0, lambda state: state, environment={"numpy": "0.1"})
    (stage,) = replayed(folder, stages=[(1, 0)]).stages
    assert stage.outcome == "bit_identical"
    assert stage.environment == (f"stages were trained under different numpy: 0.1, {np.__version__}",)


# How states are compared


def compared(stored, found, tolerance=EXACT):
    return compare_states(pack(stored), pack(found), tolerance)


NUMBERS = st.sampled_from([0.0, -0.0, 1.0, 1.001, -3.0, np.nan, np.inf, -np.inf])
PAIRS = st.sampled_from([np.float16, np.float32, np.float64, np.complex64]).flatmap(
    lambda kind: st.tuples(*[arrays.arrays(kind, 4, elements=NUMBERS)] * 2)
)


@given(PAIRS, st.sampled_from([EXACT, Tolerance(), Tolerance(1.0, 0), Tolerance(0, 0.01)]))
def test_tensors_are_within_a_tolerance_as_a_loop_over_their_numbers_says(pair, tolerance):
    stored, found = pair
    difference = compared({"w": stored}, {"w": found}, tolerance)
    largest, scale = 0.0, max([abs(complex(n)) for n in stored if np.isfinite(n)], default=0.0)
    for one, other in zip(stored.tolist(), found.tolist(), strict=True):
        if one == other or (one != one and other != other):
            continue
        apart = abs(one - other)
        largest = max(largest, apart if np.isfinite(apart) else np.inf)
    same = stored.tobytes() == found.tobytes()
    expected = "within_tolerance" if largest <= tolerance.absolute + tolerance.relative * scale else "mismatch"
    assert difference.outcome == ("bit_identical" if same else expected)
    assert difference.groups[0].absolute == pytest.approx(largest)
    assert difference.places == ()


@pytest.mark.parametrize("change", [
    {"steps": 8}, {"rate": 0.5 + 1e-16 + 1e-15}, {"name": "b"}, {"kept": [1]}, {"kept": (1, 2)}, {"more": None},
    {"counts": np.array([1, 3])}, {"mask": np.array([True, True])}, {"w": np.ones((1, 2))},
    {"w": np.ones(2, dtype=np.float32)}, {"tied": np.ones(2)},
])  # fmt: skip
def test_whatever_is_no_number_of_a_tensor_must_be_equal_whatever_the_tolerance(change):
    w = np.ones(2)
    tree = {"steps": 7, "rate": 0.5, "name": "a", "kept": [1, 2], "counts": np.array([1, 2]),
            "mask": np.array([True, False]), "w": w, "tied": w}  # fmt: skip
    assert compared(tree, dict(tree)).outcome == "bit_identical"
    found = compared(tree, tree | change, Tolerance(1e9, 1e9))
    assert found.outcome == "mismatch" and found.places
    (name,) = change
    assert any(name in place or place == "the whole state" for place in found.places) or name == "w"


@pytest.mark.parametrize("found", [{"b": 1, "a": 2}, {"a": 1, "c": 2}, {"a": 1}, [1, 2], None])
def test_names_and_their_order_must_be_equal(found):
    difference = compared({"state": {"a": 1, "b": 2}}, {"state": found}, Tolerance(1e9, 1e9))
    assert (difference.outcome, difference.places) == ("mismatch", ("state",))
    tensors = compared({"a": np.ones(1), "b": np.zeros(1)}, {"a": np.ones(1), "c": np.zeros(1)}, Tolerance(1e9, 1e9))
    assert (tensors.outcome, tensors.places) == ("mismatch", ("the whole state",))


def test_other_bits_of_a_nan_and_zeros_of_another_sign_are_within_every_tolerance():
    nans = np.array([0x7FF8000000000000, 0x7FF8000000000001], dtype="<u8").view("<f8")
    for one, other in ((nans[:1], nans[1:]), (np.array([0.0]), np.array([-0.0]))):
        assert compared(one, other).outcome == "within_tolerance"


def test_large_tensors_are_compared_to_their_last_number():
    stored = np.zeros((1 << 20) + 3, dtype=np.float32)
    found = stored.copy()
    found[-1], stored[0] = 0.5, 10
    found[0] = 10
    (group,) = compared([stored], [found]).groups
    assert (group.absolute, group.relative) == (0.5, 0.05)
