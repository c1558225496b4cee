"""Methods that do not train again, in every framework: what serves afterwards, and the way back to an exact record."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from pybrush.errors import GuaranteeError
from pybrush.guarantee import Empirical
from pybrush.method import Applied
from tests.conformance.harness import (
    INPUTS,
    SWITCH,
    Setup,
    assert_same_record,
    in_cell,
    opened,
    same_bits,
    table,
)
from tests.untouched import differences, untouched

SETUP, ROWS = Setup(), table()
HIT, SPARED = in_cell(1, 0)[:2], 0
"""Rows of shard 1; the shard that holds none of them."""
PROMISE = Empirical((), ("a scaled model shows little",))


@dataclass(frozen=True)
class Scaling:
    """Scales the dense layers of each constituent that holds forgotten rows."""

    framework: Any = field(compare=False)
    fails: bool = False
    factor: float = 0.5
    name: str = "scaling"
    promise: Empirical = PROMISE
    needs: frozenset = frozenset({"forget"})

    @property
    def settings(self):
        return {"factor": self.factor}

    def apply(self, learner, portion):
        self.framework.scale(learner, self.factor)
        if self.fails:
            raise ArithmeticError("the method failed on purpose")
        return Applied(PROMISE, visits=len(portion.forget), steps=1)


def constituents(framework, folder):
    with opened(folder) as record:
        return framework.constituents(record)


def test_what_a_method_leaves_serves_and_an_exact_request_has_the_bits_of_training_without(
    framework, elsewhere, shelf, tmp_path, caplog
):
    training = framework.training(tmp_path, SETUP, ROWS)
    training.fit()
    before = constituents(framework, tmp_path)
    result = training.unlearn(rows=HIT, method=Scaling(framework))
    assert (type(result.guarantee), result.method, result.forgotten) == (Empirical, "scaling", 2)
    assert (result.cost.stages_rebuilt, result.cost.visits, result.cost.steps) == (0, 2, 1)
    after = constituents(framework, tmp_path)
    assert same_bits(after[SPARED], before[SPARED])
    for place, (new, old) in enumerate(zip(after[1], before[1], strict=True)):
        np.testing.assert_array_equal(new, old / 2 if place < 4 else old)
    assert same_bits(framework.weights(training.model), after[1])
    with opened(tmp_path) as record:
        answers = framework.predict(record.aggregate(training.model), INPUTS)
        assert record.verify().is_clean
    assert np.array_equal(framework.predict(result.model, INPUTS), answers)

    later = framework.training(tmp_path, SETUP, ROWS, weights=5)
    SWITCH.set("batch", 1)
    later.fit()
    SWITCH.set()
    assert len([message for message in caplog.messages if "approximate release" in message]) == 1
    assert same_bits(framework.weights(later.model), after[1])

    order = {"folder": tmp_path, "setup": SETUP.later(), "rows": ROWS}
    exact = elsewhere.do("unlearn", **order, asked={"rows": HIT, "guarantee": "exact"})
    assert exact["forgotten"] == 0 and exact["method"] != "none"
    assert_same_record(tmp_path, shelf.fitted(SETUP, ROWS.without(HIT)))
    assert list((tmp_path / "record" / "releases").iterdir()) == []


def test_a_state_of_a_release_holds_no_moments(framework, shelf, tmp_path):
    shelf.copy(tmp_path, SETUP)
    with opened(tmp_path) as record:
        stage = record.constituents()[1]
        weights = {array.tobytes() for array in framework.constituents(record)[1]}
        moments = {data.tobytes() for data in record.store.packed(stage)[1].values() if data.size >= 32} - weights
    assert len(moments) >= 6
    framework.training(tmp_path, SETUP.later(), ROWS).unlearn(rows=HIT, method=Scaling(framework))
    with opened(tmp_path) as record:
        (key,) = record.stand_ins().values()
        held = {data.tobytes() for data in record.store.packed(key)[1].values()}
    assert held and not held & moments


def test_a_method_that_fails_leaves_the_model_as_it_was_and_can_be_cancelled(framework, shelf, tmp_path):
    training = framework.training(tmp_path, SETUP, ROWS)
    training.fit()
    before = training.snapshot()
    with pytest.raises(ArithmeticError) as caught:
        training.unlearn(rows=HIT, method=Scaling(framework, fails=True))
    assert "cancel(1)" in caught.value.__notes__[0]
    assert differences(before, training.snapshot()) == []
    with opened(tmp_path) as record:
        record.cancel(1)
        assert record.verify().is_clean and not record.stand_ins()
    assert_same_record(tmp_path, shelf.fitted(SETUP))


def test_a_dry_run_of_a_method_touches_nothing_and_one_that_must_be_exact_is_refused(framework, shelf, tmp_path):
    shelf.copy(tmp_path, SETUP)
    training = framework.training(tmp_path, SETUP.later(), ROWS)
    with untouched(tmp_path, read=training.snapshot):
        told = training.unlearn(rows=HIT, method=Scaling(framework, fails=True), dry_run=True)
        with pytest.raises(GuaranteeError):
            training.unlearn(rows=HIT, method=Scaling(framework), guarantee="exact")
    assert told.audit["shards_edited"] == [1] and isinstance(told.guarantee, Empirical)
