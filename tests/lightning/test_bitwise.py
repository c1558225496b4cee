"""fit(D) and unlearn(F) have the bits of fit(D \\ F) in another process, in an empty folder, without the rows."""

import pytest
import torch

from pybrush.record import Record, states
from tests.lightning.twin import CASES, KEY, Rows, answers, data_for, module_for, trainer_for


def assert_same_record(one, other):
    """Same stages under the same keys, with the same bits in every tensor and attribute."""
    a, b = (Record.open(folder / "record", KEY) for folder in (one, other))
    assert a.store.keys() == b.store.keys()
    assert a.ledger.wanted() == b.ledger.wanted() == a.store.keys()
    assert len(a.graph()) > 0
    for key in a.store.keys() | {"initial"}:
        assert states.same_bits(a.store.path(key), b.store.path(key))
    for record in (a, b):
        record.verify()
        record.close()


def forget(case, trainer, gone, **more):
    """Forget rows by the name that the case gives them."""
    if case.sisa.get("subjects"):
        return trainer.unlearn(subjects=sorted({Rows().owners[row] for row in gone}), **more)
    if case.sisa.get("ids"):
        return trainer.unlearn(ids=[Rows().names[row] for row in gone], **more)
    return trainer.unlearn(rows=list(gone), guarantee="exact", **more)


def compare(case, name, folder, fresh_process, trainer, module, gone):
    fresh = folder / "fresh"
    fresh.mkdir()
    fresh_process.fit(name, fresh, folder / "initial.pt", gone)
    assert_same_record(folder, fresh)
    assert torch.equal(answers(trainer, module), torch.load(fresh / "answers.pt", weights_only=True))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long) if n == "workers" else n for n in CASES])
def test_unlearning_has_the_bits_of_training_without_the_rows(name, tmp_path, fresh_process):
    case = CASES[name]
    module, trainer = module_for(case, tmp_path / "initial.pt"), trainer_for(case, tmp_path)
    trainer.fit(module, **data_for(case))
    before = answers(trainer, module)
    result = forget(case, trainer, case.gone)
    assert result.forgotten == len(case.gone)
    assert result.cost.stages_rebuilt > 0
    after = answers(trainer, module)
    assert not torch.equal(before, after)
    with torch.no_grad():
        assert torch.equal(result.model.eval()(Rows(seed=3).x[:16]), after[:16])
    compare(case, name, tmp_path, fresh_process, trainer, module, case.gone)
