"""Modules of which little is trained: stages keep that little, and everything else comes from the initial state."""

import json

import pytest
import torch

from pybrush.record import Record
from pybrush.record.layers import references
from tests.lightning.models import Adapted
from tests.lightning.twin import CASES, KEY, data_for, trainer_for


@pytest.fixture
def fitted(tmp_path):
    module, trainer = Adapted(), trainer_for(CASES["frozen backbone"], tmp_path)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer.fit(module, **data_for(CASES["frozen backbone"]))
    return module, trainer, before, Record.open(tmp_path / "record", KEY)


def test_stages_hold_what_was_trained_alone(fitted):
    module, _, _, record = fitted
    whole = sum(p.numel() * 4 for p in module.parameters())
    trained = sum(p.numel() * 4 for p in [*module.down.parameters(), *module.up.parameters(), module.teacher.weight])
    for stage in record.graph():
        folder = record.store.path(stage.key)
        assert len(references((folder / "tree.json").read_bytes())) == 5  # the backbone's four, the teacher's bias
        size = (folder / "state.safetensors").stat().st_size
        assert size < 3 * trained + 4000 < whole  # weights, two moments of Adam, a header


def test_a_stage_is_loaded_whole(fitted):
    module, _, before, record = fitted
    held = record.constituents()
    state, _ = record.store.load(held[max(held)])
    own = state["module"]["parameters"]
    assert own.keys() == dict(module.named_parameters()).keys()
    assert all(torch.equal(own[name], value) for name, value in module.named_parameters())
    assert all(torch.equal(own[name], before[name]) for name in own if name.startswith("net."))
    assert not torch.equal(own["teacher.weight"], before["teacher.weight"])


def test_a_request_gives_a_new_module_the_recorded_backbone(fitted, tmp_path):
    _, _, before, _ = fitted
    torch.manual_seed(123)
    other, trainer = Adapted(), trainer_for(CASES["frozen backbone"], tmp_path)
    assert not torch.equal(other.net[0].weight, before["net.0.weight"])
    result = trainer.unlearn(rows=[3], model=other, **data_for(CASES["frozen backbone"]))
    for module in (other, *result.model.members):
        assert torch.equal(module.net[0].weight, before["net.0.weight"])


def test_a_changed_initial_state_is_noticed_where_a_stage_leans_on_it(fitted):
    record = fitted[3]
    file = record.store.initial / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    key = next(iter(record.constituents().values()))
    with pytest.raises(Exception, match=r"initial is not the one that its manifest names"):
        record.store.load(key)
    assert json.loads((record.store.path(key) / "manifest.json").read_bytes())["key"] == key
