"""fit(D) and unlearn(F) have the bits of fit(D \\ F) in another process, in an empty folder, without the rows."""

import keras
import numpy as np
import pytest

from tests.keras import nets
from tests.keras.twin import CASES, assert_same_record, chosen, fit, sisa_of

MARKS = {
    # torch.compile warns of much that is its own or Keras' matter, and an error inside it ends it.
    "compiled": [pytest.mark.filterwarnings("ignore")],
}
RUN = [
    pytest.param(name, marks=[*MARKS.get(name, []), *[pytest.mark.long] * (nets.BACKEND in case.long_on)])
    for name, case in CASES.items()
    if chosen(case)
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


def last_cell(sisa, count):
    """Return positions of rows that only the last slice of some shard has."""
    record = sisa.recorded()
    samples = record.samples()
    names = sisa.naming.roster(sisa.given.arguments.rows(), record.names).names
    cells = [samples.slices[samples.find(names[[row]])[0]] for row in range(len(names))]
    return [row for row, cell in enumerate(cells) if cell == max(cells)][:count]


@pytest.mark.parametrize(
    "name",
    ["drawing", "adversaries", *(pytest.param(name, marks=pytest.mark.long) for name in ("thawing", "schedule"))],
)
def test_another_model_serves_from_the_last_slice_on(name, tmp_path, fresh_process):
    case, fresh = CASES[name], tmp_path / "fresh"
    _, sisa, data = fit(name, tmp_path)
    gone = last_cell(sisa, 1)
    overwrite(data, gone)
    keras.utils.clear_session()
    keras.utils.set_random_seed(77)
    other = sisa_of(case, tmp_path)
    own = [make() for make in case.callbacks]
    result = other.unlearn(ids=[f"row {place}" for place in gone], model=case.model(), callbacks=own, verbose=0, **data)
    assert result.cost.stages_rebuilt == 1
    fresh.mkdir()
    fresh_process.ask("fit", name=name, folder=fresh, gone=gone)
    assert_same_record(tmp_path, fresh)
