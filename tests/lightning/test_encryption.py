"""Encrypted stages under Lightning, beside checkpoints of the user's own and evaluation."""

import pytest
import torch

from pybrush.errors import SecretKeyError
from pybrush.record import Record
from tests.lightning.test_bitwise import fitted
from tests.lightning.test_erasure import ROW, Tainted, loadable_states, loader, saw_the_row, tainted_rows
from tests.lightning.twin import CASES, KEY, answers, trainer_for

pytestmark = pytest.mark.filterwarnings("ignore:.*exists and is not empty:UserWarning")


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
