"""What is told and kept of a request: report, receipt, events, and the commands that need no framework."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pybrush.app import main
from tests.conformance.harness import KEY, SWITCH, Setup, TroubleError, in_cell, opened, table
from tests.core import format_reader

SETUP, ROWS = Setup(network="dense", optimizer="plain"), table()
ROW = in_cell(1, 1)[0]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def served(framework, shelf, tmp_path):
    """A record after a request, and its result."""
    shelf.copy(tmp_path, SETUP)
    return tmp_path, framework.training(tmp_path, SETUP.later(), ROWS).unlearn(rows=[ROW])


def test_the_result_says_what_was_done_what_it_cost_and_what_it_guarantees(served):
    folder, result = served
    with opened(folder) as record:
        stages = {stage.key: stage for stage in record.graph()}
        rebuilt = [stage for stage in stages.values() if (stage.shard, stage.slice) == (1, 1)]
        manifest = record.store.manifest(rebuilt[0].key)
        info, plan = record.requests[0], record.plan
    assert (result.request, result.method, result.forgotten, result.shards) == (1, "rebuild", 1, (0, 1))
    assert (result.cost.stages_rebuilt, result.cost.stages) == (1, 4)
    assert result.cost.visits == rebuilt[0].rows * plan.epochs_per_slice
    assert result.cost.steps == manifest.steps > 0
    assert manifest.learning_rate_sum == pytest.approx(manifest.steps * SETUP.rate)
    assert result.cost.retrain_visits == sum(stage.rows for stage in stages.values()) * plan.epochs_per_slice
    assert info.outcome["cost"]["steps"] == result.cost.steps
    names = [assumption.name for assumption in result.guarantee.assumptions]
    assert type(result.guarantee).__name__ == "Exact" and "initial-state" in names


def test_report_and_receipt_are_of_the_request_and_the_events_open_with_it(served, tmp_path):
    folder, result = served
    page = result.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<html" in page and "Exact" in page and ROWS.ids[ROW] not in page
    receipt = result.write_receipt(tmp_path / "receipt.json")
    assert receipt.stat().st_mode & 0o077 == 0
    with opened(folder) as record:
        assert record.check_receipt(receipt).request == 1
    name = format_reader.pseudonym(KEY, ROWS.ids[ROW])
    assert name.hex() in json.loads(receipt.read_text())["rows"]


def test_verify_and_info_work_on_it_without_the_framework(served, tmp_path, monkeypatch):
    folder, _ = served
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "key").chmod(0o600)
    monkeypatch.setenv("PYBRUSH_KEY_FILE", str(tmp_path / "key"))
    code = (
        "import sys; from pybrush.app import main; status = main(sys.argv[1:]); "
        "frameworks = {'torch', 'lightning', 'keras', 'tensorflow'} & sys.modules.keys(); "
        "sys.exit(status or (f'imported {frameworks}' if frameworks else 0))"
    )
    for command, word in (("verify", "clean"), ("info", "rebuild")):
        words = [sys.executable, "-c", code, command, f"record={folder / 'record'}"]
        done = subprocess.run(words, cwd=tmp_path, env=None, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert word in done.stdout


def test_an_open_request_is_told_of_by_verify_and_info(framework, shelf, tmp_path, monkeypatch, capsys):
    shelf.copy(tmp_path, SETUP)
    training = framework.training(tmp_path, SETUP.later(), ROWS)
    SWITCH.set("batch", 1)
    with pytest.raises(TroubleError):
        training.unlearn(rows=[ROW])
    known = format_reader.read_record(tmp_path / "record")
    assert list(known["pending"]) == [1] and list(format_reader.defects(known)) == []
    with opened(tmp_path) as record:
        assert "1: pending" in record.verify().pending[0]
        assert [line.state for line in record.info().requests] == ["pending"]
    (tmp_path / "key").write_bytes(KEY)
    monkeypatch.setenv("PYBRUSH_KEY_FILE", str(tmp_path / "key"))
    assert main(["verify", f"record={tmp_path / 'record'}"]) == 2
    assert "pending" in capsys.readouterr().out
