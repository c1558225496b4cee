"""fit(D) and unlearn(F) have the bits of fit(D without F), in every framework."""

import numpy as np
import pytest

from tests.conformance.harness import (
    INPUTS,
    Setup,
    assert_same_constituents,
    assert_same_record,
    in_cell,
    opened,
    same_bits,
    table,
)

GONE = (3, 20)

SETUPS = {
    "adam, by content": Setup(named="content"),
    "momentum": Setup(optimizer="momentum", slices=3),
    "dense layers alone": Setup(network="dense", optimizer="plain", shards=3, slices=1),
    "one shard": Setup(shards=1, slices=2),
    "subjects": Setup(has_subjects=True),
    "days": Setup(has_days=True, named="content"),
    "in order": Setup(sequential=True),
    "encrypted": Setup(encrypt=True),
    "saved": Setup(saves="every epoch"),
    "validated": Setup(validated=True),
}


@pytest.mark.parametrize("name", SETUPS)
def test_unlearning_has_the_bits_of_training_without_the_rows(name, framework, shelf, tmp_path):
    setup = SETUPS[name]
    training = framework.training(tmp_path, setup, table())
    training.fit()
    with opened(tmp_path) as record:
        before = framework.predict(record.aggregate(training.model), INPUTS)
    result = training.unlearn(rows=list(GONE))
    assert (result.forgotten, result.method, type(result.guarantee).__name__) == (2, "rebuild", "Exact")
    assert 0 < result.cost.stages_rebuilt <= result.cost.stages
    twin = shelf.fitted(setup, table().without(GONE))
    assert_same_record(tmp_path, twin)
    assert_same_constituents(framework, tmp_path, twin)
    with opened(twin) as record:
        after = framework.predict(record.aggregate(training.model), INPUTS)
        held = framework.constituents(record)
    if setup.shards == 1:
        assert result.model is training.model
    else:
        assert np.array_equal(framework.predict(result.model, INPUTS), after)
    assert not np.array_equal(before, after)
    assert same_bits(framework.weights(training.model), held[max(held)])


def test_another_process_that_never_had_the_rows_has_the_same_bits(framework, elsewhere, shelf, tmp_path):
    setup, twin = SETUPS["momentum"], tmp_path / "twin"
    twin.mkdir()
    shelf.copy(tmp_path, setup)
    here = elsewhere.do(
        "unlearn", folder=tmp_path, setup=setup.later(), rows=table(), asked={"ids": [table().ids[r] for r in GONE]}
    )
    there = elsewhere.do("fit", folder=twin, setup=setup, rows=table().without(GONE))
    assert here["forgotten"] == 2
    assert_same_record(tmp_path, twin)
    assert same_bits(here["weights"], there["weights"])
    assert np.array_equal(here["answers"], there["answers"])


def test_three_requests_in_a_row_resurrect_nothing_and_drop_nothing(framework, shelf, tmp_path):
    setup = SETUPS["momentum"]
    training = framework.training(tmp_path, setup, table())
    training.fit()
    for gone in ([1, 2], [30], [7, 8, 9]):
        assert training.unlearn(rows=gone).forgotten == len(gone)
    assert_same_record(tmp_path, shelf.fitted(setup, table().without([1, 2, 30, 7, 8, 9])))


def test_every_stage_that_never_saw_the_row_stays_and_the_model_holds_the_last_constituent(framework, shelf, tmp_path):
    shelf.copy(tmp_path, Setup())
    with opened(tmp_path) as record:
        before = {stage.key: record.store.manifest(stage.key).sha256 for stage in record.graph()}
        others = {stage.key for stage in record.graph() if stage.shard == 1}
        last = framework.constituents(record)[1]
    training = framework.training(tmp_path, Setup(), table(), weights=4)
    assert training.unlearn(rows=[in_cell(0, 0)[0]]).cost.stages_rebuilt == 2
    with opened(tmp_path) as record:
        after = {stage.key: record.store.manifest(stage.key).sha256 for stage in record.graph()}
    assert others == before.keys() & after.keys()
    assert all(before[key] == after[key] for key in others)
    assert same_bits(framework.weights(training.model), last)
