"""The example of a project of someone else's that becomes forgettable by one callback, run as a user runs it."""

import csv
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from pybrush.record import Record, states

TEMPLATE = Path(__file__).parents[2] / "examples" / "template"
SISA = "+callbacks.sisa={_target_: pybrush_lightning.SISA, shards: 2, record: here/record}"

WITHOUT = """
from project.data import MNIST
from torch.utils.data import Subset

class Without(MNIST):
    def __init__(self, gone, **settings):
        super().__init__(**settings)
        self.gone = set(gone)

    def setup(self, stage=None):
        super().setup(stage)
        part = self.parts[0]
        self.parts[0] = Subset(part.dataset, [row for place, row in enumerate(part.indices) if place not in self.gone])
"""


def run(script, *words, cwd):
    command = [sys.executable, TEMPLATE / script, *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TEMPLATE.parents[1]), str(cwd), *sys.path])}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def logged(folder):
    """Return the accuracy that the latest run has logged in its test."""
    with max(folder.glob("runs/*/csv/*/metrics.csv")).open() as file:
        return [float(row["test/acc"]) for row in csv.DictReader(file) if row.get("test/acc")][-1]


def accuracy_of_the_aggregate(folder, monkeypatch):
    """Return the accuracy of the module that the record gives, in a plain loop."""
    monkeypatch.syspath_prepend(str(TEMPLATE))
    for name in ("project", "project.data", "project.model"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    with initialize_config_dir(str(TEMPLATE / "configs"), version_base="1.3"):
        config = compose("train")
    data, module = instantiate(config.data), instantiate(config.model)
    assert isinstance(module, L.LightningModule)
    data.setup()
    record = Record.open(folder)
    aggregate = record.aggregate(module).eval()
    assert len(record.constituents()) > 1
    record.close()
    with torch.no_grad():
        right = [(aggregate(images).argmax(1) == digits).sum() for images, digits in data.test_dataloader()]
    return float(sum(right)) / len(data.parts[2])


def test_one_entry_on_the_command_line_is_enough_and_forward_is_answered_by_all_shards(tmp_path, monkeypatch):
    words = ["trainer.max_epochs=2", "output=here", "logger=[csv,tensorboard]", SISA]
    run("train.py", *words, cwd=tmp_path)
    record = Record.open(tmp_path / "here/record")
    assert record.verify().is_clean and record.plan.shards == 2 and record.samples().rows == 4000
    record.close()
    assert logged(tmp_path / "here") == pytest.approx(
        accuracy_of_the_aggregate(tmp_path / "here/record", monkeypatch), abs=1e-6
    )
    assert list(tmp_path.glob("here/runs/*/checkpoints/**/*.ckpt")) and list(
        tmp_path.glob("here/runs/*/tensorboard/*/*")
    )


@pytest.mark.long
def test_the_project_trains_as_before_without_the_entry(tmp_path):
    run("train.py", "trainer.max_epochs=1", "output=here", cwd=tmp_path)
    assert logged(tmp_path / "here") > 0.8
    assert not (tmp_path / "here/record").exists()


@pytest.mark.long
def test_the_tour_forgets_rows_in_another_process_and_the_record_knows_them_no_more(tmp_path):
    said = run("tour.py", str(tmp_path), cwd=tmp_path)
    assert "verify: clean, 3,997 rows" in said


@pytest.mark.long
def test_a_request_has_the_bits_of_the_same_project_trained_without_the_rows(tmp_path):
    words = ["callbacks=sisa", "trainer.max_epochs=2", "test=false"]
    run("train.py", *words, "output=seen", cwd=tmp_path)
    (tmp_path / "rows.txt").write_text("7\n404\n2026\n")
    assert "Exact" in run("unlearn.py", *words, "output=seen", "forget_file=rows.txt", cwd=tmp_path)

    (tmp_path / "without.py").write_text(WITHOUT)
    (tmp_path / "never").mkdir()
    shutil.copy(tmp_path / "seen/record.key", tmp_path / "never/record.key")
    data = ["data._target_=without.Without", "+data.gone=[7,404,2026]", "output=never"]
    run("train.py", *words, *data, cwd=tmp_path)
    one, other = Record.open(tmp_path / "seen/record"), Record.open(tmp_path / "never/record")
    built = one.store.keys()
    assert built == other.store.keys() and len(built) == 3
    assert all(states.same_bits(one.store.path(key), other.store.path(key)) for key in built)
    one.close(), other.close()
