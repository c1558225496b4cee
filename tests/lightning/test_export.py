"""The exported model: the same answers, nothing else of the record in it, and gone when its samples are forgotten."""

import json
import logging
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pybrush import Record
from pybrush.errors import ConfigurationError, CorruptRecordError, LockedError, RecordError, UnsupportedError
from pybrush.record.locks import request_lock
from pybrush_lightning import load_export
from pybrush_lightning.aggregate import combine
from tests import reference
from tests.lightning.models import Net, Remembering, Rows
from tests.lightning.twin import KEY, Case, data_for, module_for, trainer_for

INPUTS = Rows(seed=3).x


class ChannelsLast(Net):
    """Images in another order of memory."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.full((1,), 0.25), persistent=False)
        self.image = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
        self.net[0] = nn.Linear(8, 12)
        self.net[4].weight = nn.Parameter(self.net[4].weight.detach().t().contiguous().t())

    def forward(self, x):
        images = torch.cat([x, x], 1).view(-1, 3, 2, 2)
        return self.net(torch.cat([x, self.image(images).flatten(1)[:, :2] + self.shift], 1))


class Tied(Net):
    """Two layers share their weights."""

    def __init__(self):
        super().__init__()
        self.net.insert(3, nn.Linear(12, 12))
        self.net.insert(4, nn.Linear(12, 12))
        self.net[4].weight = self.net[3].weight


CASES = {
    "two shards": Case(),
    "one shard": Case(shards=1, slices=1),
    "votes": Case(shards=3, sisa={"aggregate": "vote"}),
    "half precision": Case(trainer={"precision": "bf16-true"}),
    "orders of memory": Case(ChannelsLast),
    "tied": Case(Tied),
}


def fitted(folder, case):
    """Fit a case; return an opened record, the trainer and the module."""
    trainer, module = trainer_for(case, folder), module_for(case, Path(folder) / "initial.pt")
    trainer.fit(module, **data_for(case))
    return Record.open(Path(folder) / "record", KEY), trainer, module


def fresh(case):
    torch.manual_seed(99)
    return case.module()


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_export_answers_bit_for_bit_as_what_was_trained(name, tmp_path):
    case = CASES[name]
    record, _, module = fitted(tmp_path, case)
    with closing(record):
        record.export(tmp_path / "out")
        deployed = module.eval() if case.shards == 1 else record.aggregate(module)
    loaded = load_export(tmp_path / "out", fresh(case))
    inputs = INPUTS.to(next(deployed.parameters()).dtype)
    assert torch.equal(loaded(inputs), deployed(inputs)) and not loaded.training
    # Products of matrices may have other bits where memory is laid out another way.
    assert [p.stride() for p in loaded.parameters()] == [p.stride() for p in deployed.parameters()]
    assert any(not p.is_contiguous() for p in loaded.parameters()) == (name == "orders of memory")


@pytest.mark.parametrize("name", ["two shards", "one shard", "tied"])
def test_an_export_is_loaded_without_pybrush_too(name, tmp_path):
    case = CASES[name]
    record, _, module = fitted(tmp_path, case)
    with closing(record):
        record.export(str(tmp_path / "out"))
        deployed = module.eval() if case.shards == 1 else record.aggregate(module)
    described = json.loads((tmp_path / "out/model.json").read_text())
    said = []
    for entry in described["constituents"]:
        member = fresh(case).eval()
        member.load_state_dict(load_file(tmp_path / "out" / entry["file"]))
        said.append(member(INPUTS))
    answer = combine(said, described["outputs"], described["aggregate"]) if len(said) > 1 else said[0]
    assert torch.equal(answer, deployed(INPUTS)) and described["class"] == type(module).__name__


def test_an_export_holds_weights_and_a_description_and_nothing_else_of_the_record(tmp_path):
    record, _, module = fitted(tmp_path, Case(sisa={"ids": "names", "subjects": "owners"}))
    with closing(record):
        place = record.export(tmp_path / "out")
        assert place == tmp_path / "out"
        key_id, digest = record.plan.key_id, record.plan.semantic_digest
    files = {path.name: path for path in place.iterdir()}
    assert set(files) == {"model.json", "constituent_0.safetensors", "constituent_1.safetensors"}
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o600}
    assert place.stat().st_mode & 0o777 == 0o700
    assert set(load_file(files["constituent_0.safetensors"])) == set(module.state_dict())
    names = [reference.pseudonym(KEY, b"s:" + name.encode()) for name in Rows().names]
    secrets = [KEY, *names, *(name.hex().encode() for name in names), b"sample-number", b"owner-number"]
    secrets += [KEY.hex().encode(), key_id.encode(), digest.encode(), str(tmp_path).encode(), b"momentum", b"seed"]
    assert not [secret for secret in secrets for path in files.values() if secret in path.read_bytes()]
    assert set(json.loads(files["model.json"].read_text())) == {
        "format", "class", "outputs", "aggregate", "constituents", "attributes_left_out"}  # fmt: skip


def test_a_request_removes_what_held_the_forgotten_and_the_export_says_so_until_it_is_made_again(tmp_path):
    case = Case()
    record, trainer, module = fitted(tmp_path, case)
    record.export(tmp_path / "out")
    before = record.constituents()
    result = trainer.unlearn(rows=[3])
    changed = [shard for shard, key in record.constituents().items() if before[shard] != key]
    (gone,) = [f"constituent_{shard}.safetensors" for shard in changed]
    assert str(tmp_path / "out" / gone) in result.audit["artefacts_unlinked"]
    assert {path.name for path in (tmp_path / "out").glob("constituent*")} == {
        f"constituent_{shard}.safetensors" for shard in before if shard not in changed
    }
    with pytest.raises(RecordError, match=f"{gone} is not there: a request has removed it"):
        load_export(tmp_path / "out", fresh(case))
    with pytest.raises(ConfigurationError, match="not empty"):
        record.export(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("the user's own")
    record.export(tmp_path / "out", overwrite=True)
    loaded = load_export(tmp_path / "out", fresh(case))
    assert torch.equal(loaded(INPUTS), record.aggregate(module)(INPUTS))
    assert record.verify().artefacts == 2 and (tmp_path / "out/notes.txt").read_text() == "the user's own"
    record.close()


@pytest.fixture
def record(tmp_path):
    found, _, _ = fitted(tmp_path, Case())
    yield found
    found.close()


def test_no_key_is_needed_and_a_second_export_lives_beside_the_first(record, tmp_path):
    with closing(Record.open(record.folder)) as without:
        assert without.namer is None
        for name in ("one", "other"):
            without.export(tmp_path / name)
    for name in ("one", "other"):
        load_export(tmp_path / name, Net())
    assert record.verify().artefacts == 4


def test_places_that_cannot_be_are_refused_and_nothing_is_registered(record, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", record.folder, record.folder / "stages" / "out"):
        with pytest.raises(ConfigurationError):
            record.export(place, overwrite=True)
    with pytest.raises(UnsupportedError, match="no local folder"):
        record.export("s3://models/faces")
    assert record.artefacts() == {} and (tmp_path / "file").read_text() == ""


def test_an_unfinished_record_is_refused(record, tmp_path):
    record.store.discard(record.constituents()[1])
    with pytest.raises(RecordError, match="no finished constituent of shards 1"):
        record.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_while_a_request_is_served_nothing_is_exported(record, tmp_path):
    with request_lock(record.folder), pytest.raises(LockedError):
        record.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_an_error_left_is_taken_out_again(record, tmp_path, monkeypatch):
    def full(path, data):
        if path.name == "constituent_1.safetensors":
            path.write_bytes(data[:9])
            raise OSError("the disk is full")
        path.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr("pybrush.record.exported.write_new", full)
        with pytest.raises(OSError, match="full"):
            record.export(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    record.export(tmp_path / "out")
    load_export(tmp_path / "out", Net())


def test_a_damaged_or_unfinished_export_is_refused_and_so_is_another_module(record, tmp_path):
    place = record.export(tmp_path / "out")
    with pytest.raises(ConfigurationError, match="other parameters"):
        load_export(place, ChannelsLast())
    weights, described = place / "constituent_1.safetensors", place / "model.json"
    whole, text = weights.read_bytes(), described.read_text()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptRecordError, match=r"constituent_1.safetensors is not the file"):
        load_export(place, Net())
    weights.write_bytes(whole)
    for content, error in (("{", CorruptRecordError), ("[]", CorruptRecordError), ("{}", CorruptRecordError),
                           (text.replace('"format": 1', '"format": 2'), UnsupportedError)):  # fmt: skip
        described.write_text(content)
        with pytest.raises(error, match=r"model\.json"):
            load_export(place, Net())
    described.unlink()
    with pytest.raises(RecordError, match="no finished export"):
        load_export(place, Net())


def test_attributes_that_training_changed_are_named_and_those_of_the_module_stay(tmp_path, caplog):
    record, _, _ = fitted(tmp_path, Case(Remembering))
    with closing(record), caplog.at_level(logging.WARNING):
        record.export(tmp_path / "out")
    assert "they are not in the export" in caplog.text
    left_out = json.loads((tmp_path / "out/model.json").read_text())["attributes_left_out"]
    assert {"kept", "notes", "seen"} <= set(left_out) and "optimizer" not in left_out
    caplog.clear()
    loaded = load_export(tmp_path / "out", Remembering())
    assert "they are not in the export" in caplog.text
    assert loaded.members[0].optimizer == "momentum" and loaded.members[0].seen == 0


def test_numbers_that_the_file_format_does_not_have_are_refused(tmp_path):
    class Complex(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("phase", torch.ones(1, dtype=torch.complex128))

    record, _, _ = fitted(tmp_path, Case(Complex))
    with closing(record), pytest.raises(UnsupportedError, match=r"phase \(torch.complex128\)"):
        record.export(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
