"""From training to forgetting in a project of someone else's, each step in a process of its own.

    python examples/template/tour.py [folder]

Trains with SISA as one more callback, tests all shards together, forgets three rows in a second process, asks for
the same rows again in a third, and verifies the record. Without a folder, everything goes into a temporary one.
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

from pybrush.record import Record

HERE = Path(__file__).parent
ROWS, FLOOR = [7, 404, 2026], 0.85
"""Which rows are forgotten, and the accuracy on 500 test images that 3 shards of 1,333 images must reach together."""


def run(script, folder, *words):
    """Run a script of the project in a fresh Python; return what it printed."""
    command = [sys.executable, HERE / script, "callbacks=sisa", f"output={folder}", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def accuracy(folder):
    """Return the accuracy that the latest run has logged in its test."""
    logged = max(folder.glob("runs/*/csv/*/metrics.csv"))
    with logged.open() as file:
        return [float(row["test/acc"]) for row in csv.DictReader(file) if row.get("test/acc")][-1]


def main(folder):
    run("train.py", folder)
    before, record = accuracy(folder), Record.open(folder / "record")
    stages = record.store.keys()
    print(f"trained: {record.samples().rows:,} rows, {len(stages)} shards, test accuracy {before:.3f}")

    forget = folder / "rows.txt"
    forget.write_text("".join(f"{row}\n" for row in ROWS))
    first = run("unlearn.py", folder, f"forget_file={forget}")
    after = accuracy(folder)
    rebuilt = len(record.store.keys() - stages)
    print(f"forgotten: {len(ROWS)} rows, {rebuilt} shards trained again, test accuracy {after:.3f}")

    again = run("unlearn.py", folder, f"forget_file={forget}")
    checked = record.verify()
    print(f"verify: {'clean' if checked.is_clean else 'NOT CLEAN'}, {checked.rows:,} rows")

    assert "Exact" in first and f"all {len(ROWS)} were forgotten before" in again  # the record knows them no more
    assert checked.is_clean and checked.rows == 4000 - len(ROWS)
    assert [request.state for request in record.requests] == ["sealed"]
    assert before > FLOOR and after > FLOOR
    assert f"{rebuilt} of 3 stages" in first and len(record.store.keys()) == 3
    record.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).absolute())
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place))
