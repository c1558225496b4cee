"""`pybrush plan` prices a training as `pybrush train` would make it, a record, or bare numbers, and writes nothing."""

import re
from pathlib import Path

import pytest

from pybrush.app import main
from pybrush.record import Record

QUIET = ["trainer.enable_progress_bar=false", "hydra/job_logging=none", "hydra/hydra_logging=none"]
NUMBERS = ["samples=1797", "shards=5", "slices=4", "epochs=20"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, and tables that are not folded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def priced(capsys, *words):
    """Return what a plan says: its facts, and the rows of its table of prices."""
    assert main(["plan", *words]) == 0, capsys.readouterr().err
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    facts = {row[0]: row[1] for row in cells if len(row) == 2}
    return facts, [row for row in cells if len(row) == 5]


def in_bytes(text):
    number, unit = re.search(r"([\d.,]+) (GB|MB|kB|bytes)", text).groups()
    return float(number.replace(",", "")) * {"GB": 1e9, "MB": 1e6, "kB": 1e3, "bytes": 1}[unit]


def test_bare_numbers_are_priced(here, capsys):
    facts, prices = priced(capsys, *NUMBERS, "model_bytes=1e6")
    assert facts["samples"] == "1,797" and facts["shards x slices"].startswith("5 x 4, stages of 8 epochs")
    assert [row[0] for row in prices] == ["1", "10", "100"]
    assert prices[0] == ["1", "1.00 of 5", "0.150", "0.150", "0.150"]
    assert float(prices[1][2]) > 0.6 and float(prices[2][2]) > 0.95  # 15 samples in one go leave hardly a shard
    assert float(prices[1][4]) == pytest.approx(1.5, rel=0.02)
    assert facts["states on disk"].startswith("about 63.0 MB: 21 of up to 3.0 MB")
    assert "15 samples or more" in facts["note"]
    assert list(here.iterdir()) == []


def test_one_number_of_requests_or_a_list_may_be_named(here, capsys):
    assert [row[0] for row in priced(capsys, *NUMBERS, "requests=7")[1]] == ["7"]
    assert [row[0] for row in priced(capsys, *NUMBERS, "requests=[2,50]")[1]] == ["2", "50"]


def test_an_experiment_is_priced_before_anything_is_trained_and_as_its_record_is_afterwards(here, capsys):
    words = ["experiment=digits_sisa", "trainer.max_epochs=2", "callbacks.sisa.slices=3"]
    foretold, expected = priced(capsys, *words)
    assert list(here.iterdir()) == []
    assert main(["train", *words, *QUIET]) == 0
    capsys.readouterr()
    before = sorted(here.rglob("*"))
    measured, found = priced(capsys, "record=records/digits")
    assert sorted(here.rglob("*")) == before
    assert found == expected and [row[0] for row in found] == ["1", "10", "100"]
    same = ("samples", "shards x slices", "note")
    assert [foretold[name] for name in same] == [measured[name] for name in same]
    assert "several rebuilds" in foretold["note"]  # the last note: this record has subjects

    record = Record.open("records/digits")
    rows = sum(stage.rows for stage in record.graph()) * record.plan.epochs_per_slice
    record.close()
    assert measured["row visits of training"].startswith(f"{rows / (2 * 1500):.3f} of")
    share = float(foretold["row visits of training"].split()[0])
    assert share == pytest.approx(rows / (2 * 1500), rel=0.4)  # 30 persons, each in one of six cells
    for name in ("states on disk", "ledger on disk"):
        assert in_bytes(foretold[name]) == pytest.approx(in_bytes(measured[name]), rel=0.5)
    paths = [*Path("records/digits/stages").rglob("*"), *Path("records/digits/initial").rglob("*")]
    size = sum(path.stat().st_size for path in paths if path.is_file())
    assert in_bytes(measured["states on disk"]) == pytest.approx(size, rel=0.01)


def test_a_record_needs_no_key_to_be_priced(here, capsys):
    words = ["experiment=digits_sisa", "trainer.max_epochs=1", "callbacks.sisa.subjects=null"]
    assert main(["train", *words, *QUIET]) == 0
    (here / "records/digits.key").unlink()
    capsys.readouterr()
    facts, prices = priced(capsys, "record=records/digits", "requests=1")
    assert facts["note"].startswith("6 samples or more") and prices[0][1] == "1.00 of 2"  # and not a word of persons


def test_without_shards_and_slices_every_request_is_a_retrain(here, capsys):
    facts, prices = priced(capsys, "samples=50", "shards=1", "slices=1", "epochs=3")
    assert "full retrain" in facts["note"] and [row[2] for row in prices] == ["1.000", "1.000"]
    assert "model_bytes=" in facts["states on disk"]


REFUSED = {
    "nothing": ([], "say in one way what to price"),
    "two ways": (["experiment=digits_sisa", *NUMBERS], "say in one way what to price"),
    "a record and an experiment": (["record=here", "experiment=digits_sisa"], "say in one way what to price"),
    "a record and numbers": (["record=here", "shards=3"], "a record has its own"),
    "no record": (["record=nowhere"], "there is no record in nowhere"),
    "some numbers": (["samples=100", "shards=3"], "slices=, epochs="),
    "bytes alone": (["model_bytes=100"], "samples=, shards=, slices=, epochs="),
    "a word for a number": ([*NUMBERS[1:], "samples=many"], "samples must be a whole number of at least 1; got 'many'"),
    "no shards": (["samples=100", "shards=0", "slices=1", "epochs=1"], "shards must be a whole number"),
    "half an epoch": (["samples=100", "shards=1", "slices=1", "epochs=0.5"], "epochs must be a whole number"),
    "negative bytes": ([*NUMBERS, "model_bytes=-1"], "model_bytes must be a positive number"),
    "a request for everything": ([*NUMBERS, "requests=1797"], "requests must be fewer than samples; got 1797"),
    "a request for nothing": ([*NUMBERS, "requests=[1,0]"], "requests must be a whole number"),
    "a word for requests": ([*NUMBERS, "requests=few"], "requests must be a whole number"),
    "a sweep": (["-m", "experiment=digits_sisa"], "-m is not for this command"),
    "an unknown experiment": (["experiment=nothing"], "digits_sisa"),
    "an unknown setting": (["experiment=digits_sisa", "bogus=1"], "bogus"),
    "no callback": (["experiment=digits_sisa", "~callbacks.sisa"], "callbacks=sisa"),
    "no shards in an experiment": (["experiment=digits_sisa", "callbacks.sisa.shards=0"], "shards must be a whole"),
    "no epochs in an experiment": (["experiment=digits_sisa", "trainer.max_epochs=null"], "epochs must be a whole"),
}


@pytest.mark.parametrize(("words", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_priced_is_refused_with_what_to_do(words, said, here, capsys):
    assert main(["plan", *words]) == 1
    message = capsys.readouterr().err
    assert said in message and "Traceback" not in message, message
    assert list(here.iterdir()) == []
