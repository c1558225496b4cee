"""fit(D) and unlearn(F) have the bits of fit(D \\ F) in another process, in an empty folder, without the rows."""

import keras
import numpy as np
import pytest

from tests.keras.twin import CASES, assert_same_record, chosen, fit

RUN = [
    pytest.param(name, marks=pytest.mark.long) if case.is_long else name for name, case in CASES.items() if chosen(case)
]


@pytest.fixture(autouse=True)
def _floats():
    yield
    keras.config.set_floatx("float32")


def overwrite(data, gone):
    """Replace the content of rows, in place, by what no training survives."""
    for leaf in keras.tree.flatten(data):
        leaf[list(gone)] = np.nan if leaf.dtype.kind == "f" else 0


@pytest.mark.parametrize("name", RUN)
def test_unlearning_has_the_bits_of_training_without_the_rows(name, tmp_path, fresh_process):
    case, fresh = CASES[name], tmp_path / "fresh"
    model, sisa, data = fit(name, tmp_path)
    before = model.get_weights()
    overwrite(data, case.gone)
    result = sisa.unlearn(ids=[f"row {place}" for place in case.gone], guarantee="exact")
    assert result.forgotten == len(case.gone)
    assert 0 < result.cost.stages_rebuilt <= result.cost.stages == case.shards * case.slices
    assert case.shards > 1 or any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
    fresh.mkdir()
    fresh_process.ask("fit", name=name, folder=fresh, gone=case.gone)
    assert_same_record(tmp_path, fresh)
