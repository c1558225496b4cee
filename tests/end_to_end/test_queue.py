"""`pybrush enqueue`, and what `unlearn`, `info` and `verify` do with what waits."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import chdir, closing

import pytest

from pybrush.app import main
from pybrush.record import Record
from pybrush_lightning.datasets import DigitsData
from tests.end_to_end.test_command import QUIET, forget, holding, snapshot

RECORD = "record=records/digits"
TRAIN = ["train", "experiment=digits_sisa", "trainer.max_epochs=1", "callbacks.sisa.shards=2", *QUIET]


@pytest.fixture(scope="module")
def rows():
    """The training rows of the shipped digits."""
    return DigitsData().train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished training; never written to."""
    folder = tmp_path_factory.mktemp("trained")
    with chdir(folder):
        assert main(TRAIN) == 0
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A working folder with a copy of the training."""
    shutil.copytree(trained / "records", tmp_path / "records")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")  # so that no line of a table is folded
    return tmp_path


def states():
    with closing(Record.open("records/digits")) as record:
        return [(entry.kind, entry.rows, entry.state, entry.request) for entry in record.queue]


def test_what_waits_is_told_and_served_in_one_request_and_no_file_names_it(here, rows, capsys):
    person = rows.subjects[900]
    theirs = [rows.ids[row] for row, owner in enumerate(rows.subjects) if owner == person]
    assert main(["enqueue", RECORD, forget(here, rows.ids[:2], "ids.txt")]) == 0
    assert "forget.queued=true" in capsys.readouterr().out
    assert main(["enqueue", RECORD, "forget.kind=subjects", forget(here, [person], "person.txt")]) == 0
    assert "50" in capsys.readouterr().out
    assert main(["enqueue", RECORD, "forget.kind=amend", forget(here, rows.ids[5:6], "mended.txt")]) == 0
    assert main(["enqueue", RECORD, "forget.admit=true"]) == 0
    assert states() == [(*kind, "waiting", None) for kind in (("ids", 2), ("subjects", 50), ("amend", 1), ("admit", 0))]
    assert main(["verify", RECORD]) == 2
    assert "1: ids, 2 rows, 0 days old" in capsys.readouterr().out
    assert main(["info", RECORD]) == 0
    shown = capsys.readouterr().out
    assert "4 of 4 entries are not served" in shown and "waits, 0 days old; subjects, 50 rows" in shown
    assert "withdraw(ENTRY)" in shown
    assert main(["info", RECORD, "as_json=true"]) == 0
    assert [entry["days"] for entry in json.loads(capsys.readouterr().out)["queue"]] == [0, 0, 0, 0]

    assert main(["unlearn", RECORD, "forget.queued=true", "dry_run=true"]) == 0
    assert re.search("rows forgotten +│ 52 ", capsys.readouterr().out)
    assert {state for _, _, state, _ in states()} == {"waiting"}
    assert main(["unlearn", RECORD, "forget.queued=true", "guarantee=exact", "report=page.html"]) == 0
    shown = capsys.readouterr().out
    assert re.search("rows forgotten +│ 52 ", shown) and re.search("entries of the queue +│ 1, 2, 3, 4 ", shown)
    assert "1, 2, 3, 4" in (here / "page.html").read_text()
    assert {(state, request) for _, _, state, request in states()} == {("served", 1)}
    assert main(["verify", RECORD]) == 0
    assert holding(here, [*rows.ids[:2], person, *theirs], spared={"ids.txt", "person.txt"}) == []
    assert main(["unlearn", RECORD, "forget.queued=true"]) == 0
    assert "no entry waits in the queue" in capsys.readouterr().out


def test_rows_that_are_too_old_wait_or_are_forgotten_at_once(here, capsys):
    for words in (["unlearn"], ["enqueue"]):
        assert main([*words, RECORD, "forget.before=2020-01-31"]) == (0 if words == ["unlearn"] else 1)
        said = capsys.readouterr()
        assert "no recorded row is older than 2020-01-31" in said.out + said.err
    assert main(["enqueue", RECORD, "forget.before=2999-01-01"]) == 0
    assert states() == [("before", 1500, "waiting", None)]
    assert main(["unlearn", RECORD, "forget.queued=true"]) == 1
    assert "nothing is left to train on" in capsys.readouterr().err
    assert states() == [("before", 1500, "waiting", None)]


def test_a_request_for_others_says_that_something_waits(here, rows, capsys):
    assert main(["enqueue", RECORD, forget(here, rows.ids[:2])]) == 0
    assert main(["unlearn", RECORD, forget(here, rows.ids[7:8])]) == 0
    assert "1 entry waits in the queue" in capsys.readouterr().out


def test_neither_framework_nor_configuration_is_needed_to_note_a_request(here, rows):
    (here / "records/digits/config.yaml").unlink()
    code = (
        "import sys\n"
        "for name in 'torch lightning pytorch_lightning pybrush_lightning keras pybrush_keras'.split():\n"
        "    sys.modules[name] = None\n"
        "from pybrush.app import main\n"
        f"sys.exit(main(['enqueue', '{RECORD}', '{forget(here, rows.ids[:1])}']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert states() == [("ids", 1, "waiting", None)]


def test_for_a_record_made_by_a_script_the_lines_to_serve_it_are_shown(here, rows, capsys):
    (here / "records/digits/config.yaml").unlink()
    for word, line in (("queued=true", "queued=True"), ("before=2026-01-01", "before='2026-01-01'")):
        assert main(["unlearn", RECORD, f"forget.{word}"]) == 1
        assert f"trainer.unlearn({line}, model=model" in capsys.readouterr().err


REFUSED = {
    "an unknown id": (["enqueue", RECORD, "{file}"], ["{known}", "digits-99999-class-0"], "1 of 2 samples to forget"),
    "an unknown id to amend": (
        ["enqueue", RECORD, "forget.kind=amend", "{file}"],
        ["digits-99999-class-0"],
        "to amend",
    ),
    "an unknown person": (["enqueue", RECORD, "forget.kind=subjects", "{file}"], ["nobody-99999"], "1 of 1 subjects"),
    "rows": (["enqueue", RECORD, "forget.kind=rows", "{file}"], ["3"], "ids, subjects, amend"),
    "nothing": (["enqueue", RECORD], ["{known}"], "in one way"),
    "two things": (["enqueue", RECORD, "{file}", "forget.admit=true"], ["{known}"], "in one way"),
    "no date": (["enqueue", RECORD, "forget.before=yesterday"], ["{known}"], "2026-01-31"),
    "an empty file": (["enqueue", RECORD, "{file}"], [""], "names nothing"),
    "ids on the command line": (["enqueue", RECORD, "+forget.ids=[{known}]"], ["{known}"], "forget.file=FILE alone"),
    "a file and the queue": (["unlearn", RECORD, "{file}", "forget.queued=true"], ["{known}"], "in one way"),
    "no record": (["enqueue", "record=nowhere", "{file}"], ["{known}"], "there is no record in nowhere"),
    "which record": (["enqueue", "{file}"], ["{known}"], "say which record"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_touches_nothing_and_repeats_no_id(case, here, rows, capsys):
    words, lines, said = case
    known = rows.ids[30]
    file = forget(here, [line.format(known=known) for line in lines])
    before = snapshot(here)
    code = main([word.format(known=known, file=file) for word in words])
    message = capsys.readouterr().err
    assert (code, said in message, "Traceback" in message) == (1, True, False), message
    assert known not in message and "99999" not in message
    assert snapshot(here) == before
