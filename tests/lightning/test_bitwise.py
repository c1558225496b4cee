"""fit(D) and unlearn(F) have the bits of fit(D \\ F) in another process, in an empty folder, without the rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pybrush.record import Record
from tests.lightning.models import Rows
from tests.lightning.twin import CASES, KEY, LONG, answers, data_for, forget, module_for, trainer_for


def fitted(name, folder, **changes):
    """Fit a case with all rows; return trainer and module."""
    case = CASES[name]
    module, trainer = module_for(case, folder / "initial.pt"), trainer_for(case, folder, **changes)
    trainer.fit(module, **data_for(case))
    return trainer, module


def assert_same_record(one, other):
    """Same stages under the same keys, with the same bits in every tensor and attribute, encrypted or not."""
    a, b = (Record.open(folder / "record", KEY) for folder in (one, other))
    assert a.store.keys() == b.store.keys()
    assert a.ledger.wanted() == b.ledger.wanted() == a.store.keys()
    assert len(a.graph()) > 0
    for key in a.store.keys() | {"initial"}:
        (tree_a, tensors_a), (tree_b, tensors_b) = a.store.packed(key), b.store.packed(key)
        assert tree_a == tree_b and tensors_a.keys() == tensors_b.keys()
        assert all(np.array_equal(tensors_a[name], tensors_b[name]) for name in tensors_a)
    for record in (a, b):
        record.verify()
        record.close()


def assert_as_if_never_seen(name, folder, fresh_process, now, gone):
    """Train without the rows elsewhere; compare every bit and what the aggregate answers."""
    fresh = folder / "fresh"
    fresh.mkdir()
    fresh_process.ask("fit", name=name, folder=fresh, initial=folder / "initial.pt", gone=gone)
    assert_same_record(folder, fresh)
    assert torch.equal(now, torch.load(fresh / "answers.pt", weights_only=True))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long) if n in LONG else n for n in CASES])
def test_unlearning_has_the_bits_of_training_without_the_rows(name, tmp_path, fresh_process):
    case = CASES[name]
    trainer, module = fitted(name, tmp_path)
    before = answers(trainer, module)
    result = forget(case, trainer, case.gone)
    after = answers(trainer, module)
    assert result.forgotten == len(case.gone)
    assert 0 < result.cost.stages_rebuilt <= result.cost.stages
    assert not torch.equal(before, after)
    assert_as_if_never_seen(name, tmp_path, fresh_process, after, case.gone)


def test_early_stopping_really_stops_shards_at_different_epochs(tmp_path):
    trainer, _ = fitted("early stop", tmp_path)
    record = Record.open(tmp_path / "record", KEY)
    epochs = {record.store.manifest(stage.key).steps // -(-stage.rows // 5) for stage in record.graph()}
    assert len(epochs) > 1 and max(epochs) <= 6
    assert trainer.current_epoch == 6


def test_what_the_user_does_between_fit_and_unlearn_changes_nothing(tmp_path, fresh_process):
    trainer, module = fitted("state in many places", tmp_path)
    answers(trainer, module)
    trainer.test(module, torch.utils.data.DataLoader(Rows(seed=2), batch_size=8), verbose=False)
    module.eval()
    module.seen, module.notes, module.extra = 10**6, "overwritten", torch.ones(3)
    del module.kept
    torch.manual_seed(1234)
    trainer.callbacks[1].count = -1
    trainer.unlearn(rows=[3, 20])
    now = answers(trainer, module)
    assert_as_if_never_seen("state in many places", tmp_path, fresh_process, now, [3, 20])


@pytest.mark.parametrize(
    "name",
    [
        "accumulation",
        "data module",
        "loader of the module",
        "the other package",
        "state in many places",
        "plateau",
        "frozen backbone",
    ],
)
def test_another_process_with_other_settings_serves_by_the_records_and_keeps_its_own(name, tmp_path, fresh_process):
    fitted(name, tmp_path)
    own = {"max_epochs": 9, "accumulate_grad_batches": 3, "gradient_clip_val": 0.5}
    after = fresh_process.ask(
        "unlearn", name=name, folder=tmp_path, gone=[3, 20], settings=own, loader={"batch_size": 7}
    )
    assert after == own | {"current_epoch": CASES[name].epochs, "forgotten": 2}
    now = torch.load(tmp_path / "answers.pt", weights_only=True)
    assert_as_if_never_seen(name, tmp_path, fresh_process, now, [3, 20])


def test_the_seed_of_seed_everything_becomes_the_records(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "77")
    case = replace(CASES["momentum"], sisa={"seed": None})
    trainer_for(case, tmp_path).fit(case.module(), **data_for(case))
    assert Record.open(tmp_path / "record", KEY).plan.seed == 77
