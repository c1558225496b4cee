"""What a record costs beside training: time, memory and bytes for many samples.

    python benchmarks/record.py 100000 300000 1000000          a table, one size a line
    python benchmarks/record.py 1000000 --picture docs/scale.svg

Each size runs in a process of its own, so that its peak memory is its own. The model is four numbers and its
training a counter: what is left is naming, placement, the ledger, digests, erasure and the search. Ids are
integers, contents are off, 5 shards of 4 slices. Figures: docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pybrush import forget
from pybrush.build import Sources
from pybrush.learner import Trained
from pybrush.record import Record
from pybrush.record.create import PlanWish
from pybrush.record.resolve import Wish
from pybrush.request import Roster

KEY = bytes(range(32))
MANY = 10_000
GOALS = {"fit_seconds": 8.0, "one_seconds": 3.0, "many_seconds": 6.0, "megabytes": 500.0, "bytes_per_sample": 70.0}
"""For a million samples."""


class Idle:
    """A learner that trains nothing."""

    def __init__(self) -> None:
        self.weights = np.zeros(4)

    def read_state(self) -> Any:
        return {"weights": self.weights.copy()}

    def write_state(self, state: Any) -> None:
        self.weights = state["weights"].copy()

    def train_stage(self, data: Any, rows: Any, horizon: Any, seeds: Any) -> Trained:
        self.weights = self.weights + 1
        return Trained(1, 0.1)

    def session(self, build: Callable[[], Any]) -> Any:
        return build()

    def semantic(self, namer: Any) -> dict[str, Any]:
        return {"model": "idle"}

    def environment(self) -> dict[str, Any]:
        return {}


def measure(samples: int) -> dict[str, float]:
    """Fit, forget one sample and forget ten thousand, each as a new process would; return seconds and sizes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "record"
        wish = PlanWish(5, 4, 1, 7, "shuffled", "ids", "off", "benchmark", KEY)
        found = {"samples": float(samples)}
        found["fit_seconds"] = seconds(lambda: forget.fit(folder, wish, Idle(), None, lambda n: roster(n, samples)))
        found["bytes_per_sample"] = (folder / "ledger.sqlite").stat().st_size / samples
        found["one_seconds"] = seconds(lambda: request(folder, samples, [17]))
        found["many_seconds"] = seconds(lambda: request(folder, samples, range(1000, 1000 + MANY)))
        found["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def roster(namer: Any, samples: int) -> Roster:
    return Roster(namer, samples, range(samples), None, None)


def request(folder: Path, samples: int, ids: Any) -> None:
    record = Record.open(folder, KEY)
    sources = Sources(Idle(), None, roster(record.names, samples))
    forget.unlearn(record, sources, Wish(names=record.names.samples(ids)), aggregate=lambda _: None)
    record.close()


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def table(rows: list[dict[str, float]]) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| samples | plan and ledger, s | request of 1, s | request of 10,000, s | peak, MB | bytes a sample |"]
    lines.append("|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        cells = [f"{row['samples']:,.0f}", *(f"{row[name]:.1f}" for name in list(GOALS)[:3])]
        lines.append("| " + " | ".join([*cells, f"{row['megabytes']:.0f}", f"{row['bytes_per_sample']:.1f}"]) + " |")
    return "\n".join(lines)


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Draw seconds over samples, both on logarithmic axes, with a line of slope one."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = "pybrush"
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    sizes = [row["samples"] for row in rows]
    names = {"fit_seconds": "plan and ledger", "one_seconds": "request of 1", "many_seconds": "request of 10,000"}
    for name, label in names.items():
        axes.plot(sizes, [row[name] for row in rows], marker="o", label=label)
    last = rows[-1]
    axes.plot(sizes, [last["fit_seconds"] * n / sizes[-1] for n in sizes], "k:", label="linear growth")
    axes.set(xscale="log", yscale="log", xlabel="samples", ylabel="seconds beside training")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=int, nargs="+")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--as-json", action="store_true", help="one size, for the process that measures it")
    asked = parser.parse_args()
    if asked.as_json:
        print(json.dumps(measure(asked.samples[0])))
        return
    command = [sys.executable, __file__, "--as-json"]
    rows = [
        json.loads(subprocess.run([*command, str(size)], capture_output=True, check=True, text=True).stdout)
        for size in sorted(asked.samples)
    ]
    print(table(rows))
    if asked.picture:
        draw(rows, asked.picture)


if __name__ == "__main__":
    main()
