"""The `pybrush` command on Keras in processes of its own, as a shell runs it: from training to export and back.

Keras takes seconds to import, so one process runs several commands. What needs none of its
own is in tests/keras/test_command.py.
"""

import json
import os
import subprocess
import sys
from contextlib import closing

import pytest

from pybrush import datasets
from pybrush.record import Record

QUIET = ["fit.verbose=0", "fit.epochs=1", "hydra/job_logging=none", "hydra/hydra_logging=none"]
RECORD = "record=records/keras_digits"


def pybrush(folder, backend, *commands):
    """Run commands, one after another in one process; return their exit statuses and what was said."""
    code = (
        "import json, sys; from pybrush.app import main\n"
        "codes = [main(words) for words in json.loads(sys.argv[1])]\n"
        "print(json.dumps([codes, sorted({'torch', 'lightning', 'tensorflow'} & set(sys.modules))]))"
    )
    command = [sys.executable, "-c", code, json.dumps(commands)]
    places = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=places)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    codes, frameworks = json.loads(last)
    return codes, "\n".join(lines), done.stderr, frameworks


@pytest.fixture(scope="module")
def rows():
    return datasets.digits()


def test_a_training_is_served_in_other_processes_and_on_its_own_backend_alone(tmp_path, rows):
    runs = ["train", "-m", "experiment=keras_digits_sisa", "seed=0,1", *QUIET, "hydra.sweep.dir=runs"]
    runs += ["callbacks.sisa.record=records/keras_digits_${seed}", "callbacks.sisa.slices=1"]
    (code,), said, errors, frameworks = pybrush(tmp_path, "tensorflow", runs)
    assert code == 0, errors
    assert said.count("test/accuracy") == 2 and frameworks == ["tensorflow"]
    gone = [rows.ids[5], rows.ids[77]]
    (tmp_path / "ids.txt").write_text("\n".join(gone))
    # The second run of a sweep, whose layers have other automatic names than in a process of their own.
    second = "record=records/keras_digits_1"
    (tmp_path / "records/keras_digits_0").rename(tmp_path / "records/keras_digits")
    (tmp_path / "records/keras_digits_0.key").rename(tmp_path / "records/keras_digits.key")
    codes, said, errors, frameworks = pybrush(
        tmp_path, "tensorflow",
        ["enqueue", second, "forget.file=ids.txt"],
        ["unlearn", second, "forget.queued=true", "guarantee=exact", "report=page.html"],
        ["verify", second, "depth=replay", "stages=all"],
        ["info", second, "as_json=true"],
        ["export", second, "to=deploy"],
        ["plan", "framework=keras", "fit.epochs=2"],
    )  # fmt: skip
    assert (codes, frameworks) == ([0] * 6, ["tensorflow"]), errors
    for told in ("Exact", "bit_identical", "2 of 2 trained again", '"adapter": "keras"', "exported to", "1,500"):
        assert told in said, told
    with closing(Record.open(tmp_path / "records/keras_digits_1")) as record:
        assert record.samples().rows == 1500 - 2
        assert [request.state for request in record.requests] == ["sealed"]
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "ids.txt"]
    assert [path for path in files if any(name.encode() in path.read_bytes() for name in gone)] == []

    before = {path: path.read_bytes() for path in (tmp_path / "records").rglob("*") if path.is_file()}
    words = ["unlearn", RECORD, "forget.file=ids.txt"]
    more = ["train", "experiment=keras_digits_sisa", "callbacks.sisa.slices=1", *QUIET, "hydra.run.dir=again"]
    mixed = ["train", "framework=keras", "experiment=digits_sisa", *QUIET[2:], "hydra.run.dir=mixed"]
    codes, _, errors, _ = pybrush(tmp_path, "torch", words, more, ["verify", RECORD, "depth=replay"], mixed)
    assert codes == [1, 1, 1, 1] and errors.count("Start Python with KERAS_BACKEND=tensorflow") == 3
    assert "(framework=NAME): adapter=keras does not train a pybrush_lightning.models.MLP" in errors
    assert {path: path.read_bytes() for path in (tmp_path / "records").rglob("*") if path.is_file()} == before
