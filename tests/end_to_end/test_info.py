"""`pybrush info`: what a record holds, on a record whose request is open; without key and framework; no name in it."""

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import chdir, closing
from pathlib import Path

import pytest

from pybrush.app import main
from pybrush.record import Record
from pybrush_lightning.datasets import DigitsData
from tests.end_to_end.test_command import TINY, forget, snapshot

OWN = """
from pathlib import Path
from pybrush.errors import TrainingError
from lightning.pytorch import Callback

class Failure(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        if Path("fail").exists():
            raise TrainingError("the disk is full of bees")
"""
INFO = ["info", "record=records/digits"]


@pytest.fixture(scope="module")
def rows():
    return DigitsData().train


@pytest.fixture(scope="module")
def left_open(tmp_path_factory, rows):
    """A folder with a training, one request that was sealed and one that failed twelve days ago; never written to."""
    folder = tmp_path_factory.mktemp("open")
    (folder / "own_fault.py").write_text(OWN)
    request = ["unlearn", "record=records/digits", "allow=[own_fault]"]
    with chdir(folder):
        assert main([*TINY, "+callbacks.fail={_target_: own_fault.Failure}", "trainer.enable_checkpointing=true"]) == 0
        assert main([*request, forget(folder, rows.ids[:3])]) == 0
        (folder / "fail").touch()
        assert main([*request, forget(folder, rows.ids[3:5])]) == 1
    with closing(sqlite3.connect(folder / "records/digits/ledger.sqlite")) as ledger, ledger:
        ledger.execute(
            "UPDATE requests SET accepted = strftime('%Y-%m-%dT%H:%M:%SZ', 'now', '-12 days') WHERE number = 2"
        )
    return folder


@pytest.fixture
def here(left_open, tmp_path, monkeypatch):
    """A working folder with a copy of it."""
    shutil.copytree(left_open / "records", tmp_path / "records")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")  # so that no line of a table is folded
    return tmp_path


def told(capsys, *words):
    capsys.readouterr()
    assert main([*INFO, *words]) == 0
    return capsys.readouterr().out


def test_a_table_tells_what_the_record_holds_and_the_ways_out_of_an_open_request(here, capsys):
    before, text = snapshot(here), told(capsys)
    for part in (
        "rows",
        "1,497",
        "people",
        "by the adapter lightning",
        "2 x 2",
        "2 of 2 shards",
        "1 sealed, 1 pending",
    ):
        assert part in text, part
    assert "pending, 12 days old; rebuild of 2 rows" in text and "call unlearn again" in text
    assert "Record.open('records/digits').cancel(2)" in text
    assert snapshot(here) == before
    with closing(Record.open("records/digits")) as record:
        record.cancel(2)
    text = told(capsys)
    assert "1 sealed, 1 cancelled" in text
    assert not [part for part in ("pending", "days old", "call unlearn", "cancel(") if part in text]


def test_json_is_for_a_monitor_and_says_the_same(here, capsys):
    found = json.loads(told(capsys, "as_json=true"))
    with closing(sqlite3.connect("records/digits/ledger.sqlite")) as ledger:
        ((samples, rows),) = ledger.execute("SELECT count(*), sum(copies) FROM samples").fetchall()
        ((people,),) = ledger.execute("SELECT count(DISTINCT subject) FROM subjects").fetchall()
        files = [Path("records/digits", path) for (path,) in ledger.execute("SELECT path FROM artefacts")]
    assert (found["samples"], found["rows"], found["subjects"]) == (samples, rows, people) and samples == 1497
    size = sum(path.stat().st_size for path in files if path.is_file())  # a folder is registered beside its files
    assert found["artefacts"] == {"count": len(files), "bytes": size, "absent": 0, "left": 0} and size > 0
    assert [(each["state"], each["days"], each["ways_out"]) for each in found["requests"]] == [
        ("sealed", None, []),
        ("pending", 12, ["unlearn", "cancel"]),
    ]
    assert found["disk"]["everything"] > found["disk"]["stages"] > found["disk"]["initial"] > 0


def test_nobody_is_named_and_the_key_is_not_shown(here, rows, capsys):
    key = (here / "records/digits.key").read_bytes()
    with closing(Record.open("records/digits")) as record:
        record.register_artefact(here / f"of-{rows.ids[40]}.ckpt", record.graph()[0].key, "checkpoint")
        names = [*record.names.samples(rows.ids), *record.names.subjects(rows.subjects)]
    hidden = [*rows.ids, *rows.subjects, key.hex(), *(name.tobytes().hex() for name in names)]
    for text in (told(capsys), told(capsys, "as_json=true")):
        assert "digits" in text
        assert not [secret for secret in hidden if secret in text]


def test_neither_key_nor_framework_is_needed(here):
    (here / "records/digits.key").unlink()
    code = (
        "import sys\n"
        "for name in 'torch lightning pytorch_lightning pybrush_lightning keras pybrush_keras'.split():\n"
        "    sys.modules[name] = None\n"
        "from pybrush.app import main\n"
        f"sys.exit(main({INFO}) or main({[*INFO, 'as_json=true']}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not found here" in done.stdout and '"has_key": false' in done.stdout


def test_a_folder_with_signs_of_markup_is_shown_as_it_is(here, capsys):
    shutil.move("records", "[red] :smile:")
    capsys.readouterr()
    assert main(["info", "record=[red] :smile:/digits", "as_json=true"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == "[red] :smile:/digits"
    assert main(["info", "record=[red] :smile:/digits"]) == 0
    assert "Record.open('[red] :smile:/digits').cancel(2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("PRAGMA user_version = 2", "has format version 2; this PyBrush reads version 1"),
        ("DELETE FROM plan", "was not finished when it was made; run the training again"),
        (None, "there is no record in records/digits"),
    ],
)
def test_what_is_no_record_has_one_message(damage, said, here, capsys):
    if damage is None:
        (here / "records/digits/ledger.sqlite").unlink()
    else:
        with closing(sqlite3.connect("records/digits/ledger.sqlite")) as ledger, ledger:
            ledger.execute(damage)
    for words in (INFO, [*INFO, "as_json=true"]):
        assert main(words) == 1
        found = capsys.readouterr()
        assert found.out == "" and found.err.startswith("pybrush info: ") and said in found.err
        assert found.err.count("\n") == 1


def test_words_are_checked_as_for_the_other_commands(here, capsys):
    for words, said in ((["info"], "say which record: pybrush info"), ([*INFO, "json=true"], "record, as_json")):
        assert main(words) == 1
        assert said in capsys.readouterr().err
    assert main(["info", "--help"]) == 0
    assert "as_json: false" in capsys.readouterr().out
