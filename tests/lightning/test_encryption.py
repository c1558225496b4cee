"""Encrypted stages under Lightning: the same bits and answers, no weights on the disk; files that a request leaves."""

from contextlib import closing

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from pybrush.errors import ErasureError, SecretKeyError
from pybrush.record import Record, files
from tests.lightning.models import Net, Rows
from tests.lightning.test_bitwise import assert_same_record, fitted
from tests.lightning.test_erasure import ROW, Tainted, loadable_states, loader, saw_the_row, tainted_rows
from tests.lightning.twin import CASES, KEY, answers, data_for, forget, trainer_for

pytestmark = pytest.mark.filterwarnings("ignore:.*exists and is not empty:UserWarning")


def test_encryption_changes_no_bit_and_no_answer_of_fit_and_request(tmp_path):
    case, (one, other) = CASES["encrypted"], (tmp_path / "encrypted", tmp_path / "plain")
    for folder in (one, other):
        folder.mkdir()
    trainer, module = fitted("encrypted", one)
    (other / "initial.pt").write_bytes((one / "initial.pt").read_bytes())
    plain_trainer, plain_module = fitted("encrypted", other, sisa={"encrypt": None})
    assert_same_record(one, other)
    assert torch.equal(answers(trainer, module), answers(plain_trainer, plain_module))
    # A trainer that fitted nothing is told nothing of encryption: the record knows.
    new, held = trainer_for(case, one, sisa={"encrypt": None, "shards": None, "slices": None}), Net("adam")
    result = forget(case, new, case.gone, model=held, **data_for(case))
    expected = forget(case, plain_trainer, case.gone)
    assert_same_record(one, other)
    inputs = Rows(seed=3).x
    with closing(Record.open(one / "record", KEY)) as record:
        again = record.aggregate(Net("adam")).eval()(inputs)
    assert torch.equal(result.model.eval()(inputs), expected.model.eval()(inputs))
    assert torch.equal(again, expected.model.eval()(inputs))
    assert torch.equal(answers(new, held), answers(plain_trainer, plain_module))


def tensors_of(folder):
    """Return the bytes of every trained parameter and moment of sixteen bytes and more, of all stages."""
    with closing(Record.open(folder / "record", KEY)) as record:
        packed = [record.store.packed(stage.key)[1] for stage in record.graph()]
        initial = {data.tobytes() for data in record.store.packed("initial")[1].values()}
    return {data.tobytes() for tensors in packed for data in tensors.values() if data.size >= 16} - initial


@pytest.mark.parametrize("encrypt", [True, False])
def test_no_file_below_the_trainers_folder_ever_holds_what_a_stage_learned(encrypt, tmp_path, monkeypatch):
    seen = set()

    def look(_):
        seen.update(path.read_bytes() for path in (tmp_path / "record").rglob("*") if path.is_file())

    monkeypatch.setattr(files, "observer", look)
    trainer, _ = fitted("encrypted", tmp_path, sisa={"encrypt": encrypt})
    learned = tensors_of(tmp_path)
    forget(CASES["encrypted"], trainer, [3, 20])
    learned |= tensors_of(tmp_path)
    monkeypatch.undo()
    seen |= {path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(learned) > 20
    assert any(tensor in content for tensor in learned for content in seen) == (not encrypt)


def test_the_users_own_checkpoints_are_not_encrypted_and_go_with_their_stage(tmp_path):
    trainer = trainer_for(CASES["ids"], tmp_path, enable_checkpointing=True, sisa={"encrypt": True})
    trainer.fit(Tainted(), loader(tainted_rows()))
    assert any(saw_the_row(state) for state in loadable_states(tmp_path).values())
    result = trainer.unlearn(rows=[ROW])
    assert result.audit["keys_destroyed"] == result.audit["stages_unlinked"] > 0
    assert "your own checkpoints" in result.audit["medium"]
    assert not any(saw_the_row(state) for state in loadable_states(tmp_path).values())


def test_without_its_key_ring_a_record_is_neither_evaluated_nor_asked(tmp_path):
    trainer, module = fitted("encrypted", tmp_path)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    (tmp_path / "record.keys").rename(tmp_path / "elsewhere")
    for call in (lambda: trainer.unlearn(rows=[3]), lambda: answers(trainer, module)):
        with pytest.raises(SecretKeyError, match=r"record\.keys is not there"):
            call()
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert Record.open(tmp_path / "record", KEY).requests == ()


def test_a_request_that_lists_checkpoints_leaves_them_until_another_takes_them(tmp_path):
    own = ModelCheckpoint(save_top_k=-1)
    trainer = trainer_for(CASES["ids"], tmp_path, enable_checkpointing=True, callbacks=[own])
    trainer.fit(Tainted(), loader(tainted_rows()))
    tainted = {path for path, state in loadable_states(tmp_path).items() if saw_the_row(state)}
    foretold = trainer.unlearn(rows=[ROW], purge="list", dry_run=True)
    result = trainer.unlearn(rows=[ROW], purge="list")
    listed = result.audit["artefacts_left"]
    assert tainted and not result.is_complete and foretold.audit["artefacts_left"] == listed
    assert all(any(str(path).startswith(entry) for entry in listed) for path in tainted)
    assert tainted == {path for path, state in loadable_states(tmp_path).items() if saw_the_row(state)}
    record = Record.open(tmp_path / "record", KEY)
    with pytest.raises(ErasureError, match="purge='list'"):
        record.verify()
    assert trainer.unlearn(rows=[0 if ROW else 1]).is_complete
    assert record.verify().is_clean
    left = loadable_states(tmp_path)
    assert left and not any(saw_the_row(state) for state in left.values())
