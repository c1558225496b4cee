"""Approximate methods on a record: releases, chains of them, and the way back to an exact one."""

from dataclasses import replace

import numpy as np
import pytest

from pybrush import forget
from pybrush.errors import (
    ConfigurationError,
    ContentError,
    CorruptRecordError,
    GuaranteeError,
    MissingRowsError,
    RecordError,
    UnsupportedError,
)
from pybrush.guarantee import Budget, Certified, Empirical, Exact
from pybrush.method import Portion, Terms, terms_of
from pybrush.record import files, states
from pybrush.record.resolve import Wish
from pybrush.replay import chosen_stages
from tests import reference
from tests.core.forty_rows import (
    FIRST,
    IDS,
    NAMES,
    SECOND,
    assert_as_never_held,
    files_of,
    fit_forty,
    ids_of,
    opened,
    pending,
    rows_of,
    shards_built,
    weights_served,
    without,
)
from tests.core.numpy_learner import NumpyLearner, roster_of, wish
from tests.core.numpy_methods import Ascent, Shrink, by, exactly
from tests.core.test_fit_and_forget import KEY, assert_same_record, data, fit, keep, unlearn


@pytest.fixture
def fitted(tmp_path):
    return fit_forty(tmp_path / "a")


def test_an_approximate_request_changes_the_shards_that_hold_the_rows_and_no_other(fitted):
    folder, rows = fitted
    before, method = weights_served(folder), Ascent()
    result = unlearn(folder, rows, ids_of([*FIRST, *SECOND]), IDS, terms=by(method))
    after = weights_served(folder)
    assert np.array_equal(after[2], before[2])
    assert not np.array_equal(after[0], before[0]) and not np.array_equal(after[1], before[1])
    retained = [[i for i in rows_of(shard) if i not in FIRST + SECOND] for shard in (0, 1)]
    assert method.seen == [(0, sorted(FIRST), retained[0]), (1, sorted(SECOND), retained[1])]
    assert isinstance(result.guarantee, Empirical) and result.method == "ascent"
    assert result.forgotten == 3 and result.cost.stages_rebuilt == 0 and result.cost.steps == 12
    assert result.cost.visits == 3 * 2 * 3


def test_what_is_handed_out_is_what_the_method_left(fitted):
    """Against the method run by hand on the constituent, with seeds computed from the page alone."""
    folder, rows = fitted
    learner, own = NumpyLearner([9.0, 9.0, 9.0]), NumpyLearner(weights_served(folder)[0])
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()), learner=learner)
    with opened(folder) as record:
        release = record.ledger.rows("SELECT key FROM releases")[0][0]
        state, _ = record.store.load(record.constituents()[0])
        last, _ = record.store.load(record.constituents()[2])
    seeds = lambda purpose: reference.release_seed(11, release, 0, purpose)  # noqa: E731
    Ascent().apply(
        own, Portion(0, rows, np.array(sorted(FIRST)), np.array([i for i in rows_of(0) if i not in FIRST]), seeds, None)
    )
    assert np.array_equal(state["weights"], own.weights)
    assert state["velocity"] is None  # what the forgotten rows left in it must not stay
    assert np.array_equal(learner.weights, last["weights"])  # the highest shard's, as after any request


# From approximate to exact, and back


def test_an_approximate_request_and_the_same_rows_exactly_have_the_bits_of_a_fit_that_never_held_them(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of([*FIRST, *SECOND]), IDS, terms=by(Ascent()))
    result = unlearn(folder, rows, ids_of([*FIRST, *SECOND]), IDS, terms=exactly())
    assert isinstance(result.guarantee, Exact) and result.forgotten == 0
    assert (result.request, result.method) == (2, "rebuild-all")
    assert result.notes[0] == "what earlier requests had changed without training was trained again"
    assert_as_never_held(folder, [*FIRST, *SECOND])


def test_rows_that_were_deleted_meanwhile_are_no_hindrance_to_an_exact_guarantee(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    left = without(FIRST)
    later, ids = keep(rows, left), [IDS[i] for i in range(40) if left[i]]
    result = unlearn(folder, later, lambda _: Wish(missing=True), ids, terms=exactly())
    assert isinstance(result.guarantee, Exact)
    assert_as_never_held(folder, FIRST)


def test_nothing_more_may_be_named_and_what_is_not_exact_is_rebuilt(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    assert isinstance(unlearn(folder, rows, lambda _: None, IDS, terms=exactly()).guarantee, Exact)
    again = unlearn(folder, rows, lambda _: None, IDS, terms=exactly())
    assert again.method == "none" and isinstance(again.guarantee, Exact)
    assert_as_never_held(folder, FIRST)


def test_a_call_for_other_rows_finishes_what_was_begun_for_an_exact_guarantee(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    learner = NumpyLearner([9.0, 9.0, 9.0])
    learner.fail_at = (0, 1)
    with pytest.raises(ArithmeticError):
        unlearn(folder, rows, lambda _: None, IDS, terms=exactly(), learner=learner)
    result = unlearn(folder, rows, ids_of(SECOND), IDS)
    assert isinstance(result.guarantee, Exact) and result.request == 3
    assert_as_never_held(folder, [*FIRST, *SECOND])


def test_a_fit_finishes_what_was_begun_for_an_exact_guarantee(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    learner = NumpyLearner([9.0, 9.0, 9.0])
    learner.fail_at = (0, 1)
    with pytest.raises(ArithmeticError):
        unlearn(folder, rows, lambda _: None, IDS, terms=exactly(), learner=learner)
    fit(folder, rows, IDS)[0].record.close()
    assert_as_never_held(folder, FIRST)


def test_what_a_retrain_would_take_is_told_of_all_stages_also_of_those_that_were_replaced(fitted):
    folder, rows = fitted
    result = unlearn(folder, rows, ids_of([*FIRST, *SECOND]), IDS, terms=by(Ascent()))
    with opened(folder) as record:
        stages = record.graph()
        manifests = [record.store.manifest(stage.key) for stage in stages if record.store.has(stage.key)]
    assert len(manifests) < len(stages) == result.cost.stages
    pace = sum(manifest.seconds for manifest in manifests) / sum(manifest.rows for manifest in manifests)
    assert result.cost.retrain_seconds == pytest.approx(pace * sum(stage.rows for stage in stages))
    assert result.cost.retrain_visits == sum(stage.rows for stage in stages) * record.plan.epochs_per_slice


def test_rows_forgotten_exactly_are_not_forgotten_again_approximately(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS)
    method = Ascent()
    result = unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(method))
    assert result.method == "none" and method.seen == [] and isinstance(result.guarantee, Exact)
    assert_as_never_held(folder, FIRST)


@pytest.mark.parametrize("terms", [Terms(), by(Ascent()), by(Ascent(steps=9)), by(Shrink())])
def test_the_same_rows_at_no_more_strength_are_a_no_op_that_says_what_exact_would_cost(fitted, terms):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    before = weights_served(folder)
    result = unlearn(folder, rows, ids_of(FIRST), IDS, terms=terms)
    assert result.method == "none" and isinstance(result.guarantee, Empirical)
    assert "guarantee='exact' rebuilds 1 stages" in result.notes[-1]
    assert all(np.array_equal(weights, before[shard]) for shard, weights in weights_served(folder).items())


def test_an_approximate_request_after_an_exact_one_starts_from_what_was_rebuilt(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS)
    result = unlearn(folder, rows, ids_of(SECOND), IDS, terms=by(Ascent()))
    assert isinstance(result.guarantee, Empirical)
    unlearn(folder, rows, lambda _: None, IDS, terms=exactly())
    assert_as_never_held(folder, [*FIRST, *SECOND])


# Requests on top of an approximate one


def test_an_exact_method_on_another_shard_leaves_the_weaker_guarantee(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    before = weights_served(folder)
    result = unlearn(folder, rows, ids_of(SECOND), IDS)
    assert isinstance(result.guarantee, Empirical) and result.method == "rebuild"
    assert shards_built(folder) == {1, 2}
    assert np.array_equal(weights_served(folder)[0], before[0])
    unlearn(folder, rows, lambda _: None, IDS, terms=exactly())
    assert_as_never_held(folder, [*FIRST, *SECOND])


def test_an_exact_guarantee_for_other_rows_rebuilds_what_an_approximate_request_left(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    result = unlearn(folder, rows, ids_of(SECOND), IDS, terms=exactly())
    assert isinstance(result.guarantee, Exact) and result.forgotten == 1
    assert_as_never_held(folder, [*FIRST, *SECOND])


def test_an_exact_guarantee_is_refused_where_the_rows_to_rebuild_an_approximate_shard_are_gone(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    gone = next(i for i in rows_of(0) if i not in FIRST)
    left = without([gone])
    with pytest.raises(MissingRowsError):
        unlearn(folder, keep(rows, left), ids_of(SECOND), [IDS[i] for i in range(40) if left[i]], terms=exactly())
    with opened(folder) as record:
        assert len(record.requests) == 1


def test_a_rebuild_of_the_shard_cuts_the_chain(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    later = rows_of(0, 0)[:1]
    assert isinstance(unlearn(folder, rows, ids_of(later), IDS).guarantee, Exact)
    assert_as_never_held(folder, [*FIRST, *later])


def test_a_second_approximate_request_on_the_shard_begins_with_what_the_first_left(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST[:1]), IDS, terms=by(Ascent()))
    with opened(folder) as record:
        (first,) = record.stand_ins().values()
        sha256 = record.store.manifest(first).sha256
    result = unlearn(folder, rows, ids_of(FIRST[1:]), IDS, terms=by(Ascent(steps=1)))
    with opened(folder) as record:
        (second,) = record.stand_ins().values()
        manifest = record.store.manifest(second)
        assert manifest.parent_sha256 == sha256 and not record.store.has(first)
        assert [link["request"] for link in manifest.links] == [1, 2]
        assert record.verify().is_clean
    told = [finding.split(":")[0] for finding in result.guarantee.findings]
    assert told == ['request 1, shard 0, ascent {"rate"', 'request 2, shard 0, ascent {"rate"']
    unlearn(folder, rows, lambda _: None, IDS, terms=exactly())
    assert_as_never_held(folder, FIRST)


def test_an_approximate_request_on_another_shard_keeps_the_state_of_the_first(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    before = weights_served(folder)[0]
    unlearn(folder, rows, ids_of(SECOND), IDS, terms=by(Shrink()))
    with opened(folder) as record:
        assert set(record.stand_ins()) == {0, 1} and record.verify().releases == 2
    assert np.array_equal(weights_served(folder)[0], before)


# Certified methods


def test_certified_pairs_add_up_over_shards_and_requests(fitted):
    folder, rows = fitted
    first = unlearn(folder, rows, ids_of([*FIRST, *SECOND]), IDS, terms=by(Shrink(0.5, 1e-6)))
    assert (first.guarantee.epsilon, first.guarantee.delta, first.guarantee.composed) == (1.0, 2e-6, None)
    second = unlearn(folder, rows, ids_of(rows_of(0)[:1]), IDS, terms=by(Shrink(0.25, 1e-6)))
    assert isinstance(second.guarantee, Certified) and second.guarantee.epsilon == 0.25
    chained = 1e-6 + np.exp(0.5) * 1e-6  # of shard 0, whose state was made from the first
    assert second.guarantee.composed == pytest.approx((1.25, chained + 1e-6))
    assert "convex" in {assumption.name for assumption in second.guarantee.assumptions}
    assert "initial-state" in {assumption.name for assumption in second.guarantee.assumptions}
    weaker = unlearn(folder, rows, ids_of(rows_of(2)[:1]), IDS, terms=by(Ascent()))
    assert isinstance(weaker.guarantee, Empirical)


def test_a_budget_is_met_by_what_is_kept_or_by_rebuilding(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Shrink(0.5, 1e-6)))
    kept = unlearn(folder, rows, ids_of(SECOND), IDS, terms=Terms(None, Budget(1.0, 1e-5)))
    assert isinstance(kept.guarantee, Certified) and kept.method == "rebuild"
    again = unlearn(folder, rows, ids_of(SECOND), IDS, terms=Terms(None, Budget(0.5, 1e-6)))
    assert again.method == "none"
    rebuilt = unlearn(folder, rows, ids_of(SECOND), IDS, terms=Terms(None, Budget(0.4, 1e-5)))
    assert isinstance(rebuilt.guarantee, Exact)
    assert_as_never_held(folder, [*FIRST, *SECOND])


def test_a_method_that_cannot_meet_a_budget_is_refused_before_anything_is_touched(fitted):
    folder, rows = fitted
    method = Shrink(0.5, 1e-6)
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(method, Budget(0.5, 1e-6)))
    for more in (SECOND, rows_of(0)[:1]):
        for terms in (by(method, Budget(0.9, 1e-5)), by(Ascent(), Budget(9.0, 0.1))):
            with pytest.raises(GuaranteeError, match="as a whole"):
                unlearn(folder, rows, ids_of(more), IDS, terms=terms)
    with opened(folder) as record:
        assert len(record.requests) == 1 and record.verify().is_clean


def test_the_secret_state_is_handed_to_the_next_method_alone_and_goes_with_the_release(fitted):
    folder, rows = fitted
    method, before = Shrink(), weights_served(folder)[0]
    unlearn(folder, rows, ids_of(FIRST[:1]), IDS, terms=by(method))
    with opened(folder) as record:
        (key,) = record.stand_ins().values()
        secret = record.store.secret_path(key)
        assert record.verify().secrets == (key,)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (secret, *secret.iterdir()))
    assert np.array_equal(states.load(secret)["weights"], before * 0.5)
    assert not np.array_equal(weights_served(folder)[0], before * 0.5)
    unlearn(folder, rows, ids_of(FIRST[1:]), IDS, terms=by(method))
    assert method.secrets[0] is None and np.array_equal(method.secrets[1]["weights"], before * 0.5)
    assert np.array_equal(weights_served(folder)[0], before * 0.25 + 0.001)
    assert not secret.exists()
    unlearn(folder, rows, ids_of(rows_of(0)[:1]), IDS, terms=by(Ascent()))
    assert list(folder.rglob("secret")) == []


def test_a_method_that_proves_less_than_it_promised_changes_nothing(fitted):
    folder, rows = fitted
    learner = NumpyLearner([9.0, 9.0, 9.0])
    for proves in (Empirical(()), Certified(0.6, 1e-6, "training", "one")):
        with pytest.raises(GuaranteeError, match="promised") as caught:
            unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Shrink(proves=proves)), learner=learner)
        assert "cancel(1)" in caught.value.__notes__[0]
        assert np.array_equal(learner.weights, [9.0, 9.0, 9.0])
    with opened(folder) as record:
        record.cancel(1)
        assert record.verify().is_clean and isinstance(record.verify().releases, int)
    assert_as_never_held(folder, [])


# Plain fits


def test_a_plain_fit_loads_an_approximate_release_trains_nothing_and_says_so_once(fitted, caplog):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    before = weights_served(folder)
    found, learner = fit(folder, rows, IDS)
    found.record.close()
    assert learner.trained == [] and found.built == ()
    assert np.array_equal(learner.weights, before[2])
    said = [line.getMessage() for line in caplog.records if "approximate release" in line.getMessage()]
    assert len(said) == 1 and "1 stages have no exact state (shard, slice): (0, 1)" in said[0] and "exact" in said[0]
    assert found.constituents[0] in {path.name for path in (folder / "releases").iterdir()}


def test_a_fit_that_was_not_finished_is_finished_without_the_rows_by_an_approximate_request(tmp_path):
    """A shard that has no constituent yet is trained without the rows; only the others need the method."""
    learner = NumpyLearner([0.1, -0.2, 0.3])
    learner.fail_at = (1, 1)
    with pytest.raises(ArithmeticError):
        forget.fit(tmp_path / "a", wish(), learner, data(), roster_of(data(), IDS))
    method = Ascent()
    unlearn(tmp_path / "a", data(), ids_of([*FIRST, *SECOND]), IDS, terms=by(method))
    assert [shard for shard, _, _ in method.seen] == [0]
    assert shards_built(tmp_path / "a") == {1, 2}
    unlearn(tmp_path / "a", data(), lambda _: None, IDS, terms=exactly())
    assert_as_never_held(tmp_path / "a", [*FIRST, *SECOND])


# What a release is served to, and what is left


def test_dry_runs_price_the_method_and_the_way_back_and_touch_nothing(fitted):
    folder, rows = fitted
    method, before = Ascent(), files_of(folder)
    told = unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(method), dry_run=True)
    assert isinstance(told.guarantee, Empirical) and told.method == "ascent"
    assert told.cost.stages_rebuilt == 0 and told.audit["shards_edited"] == [0] and told.audit["stages"] == []
    assert method.seen == [] and before == files_of(folder)
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(method))
    told = unlearn(folder, rows, ids_of(FIRST), IDS, terms=exactly(), dry_run=True)
    assert isinstance(told.guarantee, Exact) and told.audit["stages"] == [(0, 1)]
    told = unlearn(folder, rows, ids_of(SECOND), IDS, terms=exactly(), dry_run=True)
    assert told.audit["stages"] == [(0, 1), (1, 0), (1, 1)]
    told = unlearn(folder, rows, ids_of(SECOND), IDS, dry_run=True)
    assert told.audit["stages"] == [(1, 0), (1, 1)] and isinstance(told.guarantee, Empirical)


def test_files_of_a_stage_that_saw_the_rows_go_and_those_of_a_release_go_with_it(fitted):
    folder, rows = fitted
    with opened(folder) as record:
        stages = [stage.key for stage in record.graph() if stage.shard == 0]
        for name, key in zip(("early", "late"), stages, strict=True):
            record.register_artefact(folder.with_name(name), key, "checkpoint")
            folder.with_name(name).write_bytes(b"weights")
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    assert folder.with_name("early").exists() and not folder.with_name("late").exists()
    with opened(folder) as record:
        record.register_artefact(folder.with_name("edited"), record.constituents()[0], "checkpoint")
        folder.with_name("edited").write_bytes(b"weights")
        told = unlearn(folder, rows, lambda _: None, IDS, terms=exactly(), dry_run=True)
        assert told.audit["artefacts"] == [str(folder.with_name("edited"))]
    unlearn(folder, rows, lambda _: None, IDS, terms=exactly())
    assert folder.with_name("early").exists() and not folder.with_name("edited").exists()


def test_no_file_holds_a_name_or_a_digest_of_what_was_forgotten_approximately(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    unlearn(folder, rows, ids_of(SECOND), IDS, terms=by(Shrink()))
    gone = [NAMES[i] for i in FIRST + SECOND] + [IDS[i].encode() for i in FIRST + SECOND]
    assert reference.files_holding(folder, gone) == []
    with opened(folder) as record:
        assert {request.state for request in record.requests} == {"sealed"}
        assert not record.store.keys() - {stage.key for stage in record.graph()}


def test_a_shard_with_too_few_rows_left_is_left_out_with_its_release(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    others = [i for i in rows_of(0) if i not in FIRST]
    result = unlearn(folder, rows, ids_of(others[1:]), IDS, terms=by(Ascent()))
    assert result.left_out == (0,) and isinstance(result.guarantee, Exact)
    assert_as_never_held(folder, FIRST + others[1:])


def test_equal_rows_are_forgotten_one_by_one(tmp_path):
    x, y = data()
    x[[5, 9, 12]], y[[5, 9, 12]] = x[5], y[5]
    found, _ = fit(tmp_path / "a", (x, y))
    found.record.close()
    method = Ascent()
    unlearn(tmp_path / "a", (x, y), lambda r: Wish(names=roster_of((x, y))(r.names).names[[5]]), terms=by(method))
    ((_, forgotten, retained),) = method.seen
    assert len(forgotten) == 1 and {*forgotten} | {*retained} >= {5, 9, 12} and not {*forgotten} & {*retained}


# What is refused


def test_a_method_that_reads_rows_which_are_gone_or_changed_is_refused(fitted):
    folder, rows = fitted
    left = without(FIRST[:1])
    later = [IDS[i] for i in range(40) if left[i]]
    with pytest.raises(MissingRowsError, match="1 of the rows to forget"):
        unlearn(folder, keep(rows, left), ids_of(FIRST), later, terms=by(Ascent()))
    for changed, what in ((FIRST[0], "1 rows to forget"), (rows_of(0)[0], "1 rows is not")):
        x = rows[0].copy()
        x[changed] += 1
        with pytest.raises(ContentError, match=what):
            unlearn(folder, (x, rows[1]), ids_of(FIRST), IDS, terms=by(Ascent()))
    with opened(folder) as record:
        assert record.requests == ()
    unlearn(folder, keep(rows, left), lambda _: Wish(missing=True), later, terms=by(Shrink()))  # it reads none


TERMS = {
    "exact by a method that is not": (lambda: by(Ascent(), "exact"), GuaranteeError),
    "no guarantee": (lambda: by(Ascent(), "certified"), GuaranteeError),
    "a name of its own": (lambda: by(replace(Ascent(), name="rebuild")), ConfigurationError),
    "two words": (lambda: by(replace(Ascent(), name="Two Words")), ConfigurationError),
    "settings without JSON": (lambda: by(Ascent(rate=float("nan"))), ConfigurationError),
    "a promise too strong": (lambda: by(replace(Ascent(), promise=Exact("training"))), ConfigurationError),
    "an unknown name": (lambda: terms_of("ascent", None), GuaranteeError),
}


@pytest.mark.parametrize(("make", "error"), TERMS.values(), ids=TERMS.keys())
def test_terms_that_cannot_be_kept_are_refused_when_they_are_made(make, error):
    with pytest.raises(error):
        make()


def test_a_method_that_fails_leaves_the_request_pending_and_the_same_call_finishes_it(fitted):
    folder, rows = fitted
    pending(folder, rows, Ascent())
    before = {path.name for path in (folder / "releases").iterdir()}
    assert len(before) == 1  # that of shard 0 is there already
    method = Ascent()
    result = unlearn(folder, rows, ids_of([*FIRST, *SECOND]), IDS, terms=by(method))
    assert result.request == 1 and [shard for shard, _, _ in method.seen] == [1]
    with opened(folder) as record:
        assert before < set(record.stand_ins().values()) and record.verify().is_clean


def test_a_pending_approximate_request_can_be_withdrawn(fitted):
    folder, rows = fitted
    pending(folder, rows, Ascent())
    with opened(folder) as record:
        record.cancel(1)
    assert_as_never_held(folder, [])


def test_a_request_that_is_withdrawn_leaves_the_release_before_it(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    before = weights_served(folder)
    for number, terms in ((2, by(Ascent(fail_at=2))), (3, Terms())):
        learner = NumpyLearner([9.0, 9.0, 9.0])
        learner.fail_at = (2, 1)
        with pytest.raises(ArithmeticError):
            unlearn(folder, rows, ids_of([*rows_of(0)[:1], *rows_of(2)[:1]]), IDS, terms=terms, learner=learner)
        with opened(folder) as record:
            record.cancel(number)
            assert record.verify().is_clean and set(record.stand_ins()) == {0}
    assert all(np.array_equal(weights, before[shard]) for shard, weights in weights_served(folder).items())


def test_one_of_three_equal_rows_is_struck_once_when_a_committed_request_is_asked_for_exactly(tmp_path, monkeypatch):
    x, y = data()
    x[[5, 9, 12]], y[[5, 9, 12]] = x[5], y[5]
    fit(tmp_path / "a", (x, y))[0].record.close()
    one = lambda record: Wish(names=roster_of((x, y))(record.names).names[[5]])  # noqa: E731
    monkeypatch.setattr(files, "observer", interrupt_after("commit commit"))
    with pytest.raises(KeyboardInterrupt):
        unlearn(tmp_path / "a", (x, y), one, terms=by(Ascent()))
    monkeypatch.setattr(files, "observer", None)
    result = unlearn(tmp_path / "a", (x, y), one, terms=exactly())
    assert isinstance(result.guarantee, Exact) and result.method == "rebuild-all"
    fit(tmp_path / "b", keep((x, y), np.arange(40) != 5))[0].record.close()
    assert_same_record(tmp_path / "a", tmp_path / "b")


def interrupt_after(last):
    """Return an observer that interrupts after a step on disk."""

    def observe(step):
        if step == f"after {last}":
            raise KeyboardInterrupt

    return observe


def test_a_pending_approximate_request_waits_for_its_method_or_a_stronger_one(fitted):
    folder, rows = fitted
    pending(folder, rows, Ascent())
    with pytest.raises(RecordError, match=r"ascent .*cancel"):
        unlearn(folder, rows, ids_of(rows_of(2)[:1]), IDS, terms=by(Ascent(steps=4)))
    with pytest.raises(RecordError, match="waits for the method 'ascent'"):
        fit(folder, rows, IDS)
    result = unlearn(folder, rows, ids_of([*FIRST, *SECOND]), IDS, terms=exactly())
    assert isinstance(result.guarantee, Exact) and (result.request, result.forgotten) == (1, 3)
    assert_as_never_held(folder, [*FIRST, *SECOND])


def test_another_request_finishes_a_pending_approximate_one_by_the_same_method(fitted):
    folder, rows = fitted
    pending(folder, rows, Ascent())
    unlearn(folder, rows, ids_of(rows_of(2)[:1]), IDS, terms=by(Ascent()))
    with opened(folder) as record:
        assert [request.state for request in record.requests] == ["sealed", "sealed"]
        assert set(record.stand_ins()) == {0, 1, 2} and record.verify().is_clean


def test_an_approximate_call_finishes_a_pending_rebuild_by_rebuilding(fitted):
    folder, rows = fitted
    learner = NumpyLearner([9.0, 9.0, 9.0])
    learner.fail_at = (0, 1)
    with pytest.raises(ArithmeticError):
        unlearn(folder, rows, ids_of(FIRST), IDS, learner=learner)
    result = unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    assert isinstance(result.guarantee, Exact) and result.method == "rebuild"
    assert_as_never_held(folder, FIRST)


# Beside what else a record may be


def test_states_of_releases_are_encrypted_with_their_secret_and_their_keys_go_with_them(tmp_path):
    folder, ring = tmp_path / "a", tmp_path / "a.keys"
    fit(folder, data(), IDS, encrypt=True)[0].record.close()
    unlearn(folder, data(), ids_of([*FIRST, *SECOND]), IDS, terms=by(Shrink()))
    unlearn(folder, data(), ids_of(rows_of(0)[:1]), IDS, terms=by(Shrink()))
    with opened(folder) as record:
        weights = [record.store.load_secret(key)["weights"] for key in record.stand_ins().values()]
        weights += list(weights_served(folder).values())
        assert len(weights) == 5 and record.verify().is_clean and len(record.verify().secrets) == 2
        assert {name.name.partition(".")[0] for name in ring.iterdir()} == {
            "ring",
            "latest",
            *record.ledger.wanted(),
        } - {key for key in record.ledger.wanted() if not record.store.has(key)}
    assert reference.files_holding(folder, [each.tobytes() for each in weights]) == []
    ring.rename(tmp_path / "elsewhere")
    with opened(folder) as record:
        assert record.verify().unopened == record.verify().stages + 2
        (path,) = (record.store.secret_path(record.stand_ins()[0])).glob("*.safetensors")
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        with pytest.raises(CorruptRecordError):
            record.verify()
    (tmp_path / "elsewhere").rename(ring)
    assert isinstance(unlearn(folder, data(), lambda _: None, IDS, terms=exactly()).guarantee, Exact)
    with opened(folder) as record:
        assert {path.name.partition(".")[0] for path in ring.iterdir()} == {"ring", "latest"} | record.store.keys()


def test_rows_that_join_a_shard_that_a_release_serves_rebuild_it(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(FIRST), IDS, terms=by(Ascent()))
    x, y = data(41, seed=4)
    grown = np.vstack([rows[0], x[40:]]), np.append(rows[1], y[40:])
    ids = [*IDS, next(f"new-{i}" for i in range(99) if reference.cell(name_of(f"new-{i}"), 3, 2)[0] == 0)]
    result = unlearn(folder, grown, lambda _: Wish(admits=True), ids)
    assert isinstance(result.guarantee, Exact) and result.admitted == 1
    left = np.array([i not in FIRST for i in range(41)])
    fit(folder.with_name("twin"), keep(grown, left), [ids[i] for i in range(41) if left[i]])[0].record.close()
    assert_same_record(folder, folder.with_name("twin"))


def name_of(text):
    return reference.pseudonym(KEY, b"s:" + text.encode())


def test_a_method_does_not_amend_or_admit_rows(fitted):
    folder, rows = fitted
    grown = np.vstack([rows[0], np.ones((1, 3))]), np.append(rows[1], 1.0)
    with pytest.raises(UnsupportedError, match="only forgets"):
        unlearn(folder, grown, lambda _: Wish(admits=True), [*IDS, "somebody new"], terms=by(Ascent()))
    with opened(folder) as record:
        assert record.requests == ()


@pytest.mark.parametrize("where", ["stages", "releases"])
def test_what_a_method_would_begin_with_is_looked_at_before_the_request_is_accepted(where, fitted):
    folder, rows = fitted
    if where == "releases":
        unlearn(folder, rows, ids_of(FIRST[:1]), IDS, terms=by(Ascent()))
    with opened(folder) as record:
        place, before = record.store.path(record.constituents()[0]), len(record.requests)
    (place / "state.safetensors").write_bytes((place / "state.safetensors").read_bytes()[:-1] + b"!")
    for terms in (by(Ascent()), Terms()) if where == "releases" else (by(Ascent()),):
        asked = FIRST[1:] if terms.method else SECOND  # a rebuild of another shard keeps the state
        with pytest.raises(CorruptRecordError):
            unlearn(folder, rows, ids_of(asked), IDS, terms=terms)
    if where == "releases":
        with pytest.raises(CorruptRecordError):
            fit(folder, rows, IDS)
    with opened(folder) as record:
        assert len(record.requests) == before


def test_replay_leaves_out_what_a_release_replaces(fitted):
    folder, rows = fitted
    unlearn(folder, rows, ids_of(SECOND), IDS)
    unlearn(folder, rows, ids_of(rows_of(1, 1)[:1]), IDS, terms=by(Ascent()))
    with opened(folder) as record:
        chosen = {which: [(stage.shard, stage.slice) for stage in chosen_stages(record, which)] for which in WHICH}
    assert chosen == {"touched": [(1, 0)], "all": [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]}


WHICH = ("touched", "all")
