"""What SISA costs in Keras: beside a plain fit, and when requests come. Method and figures: docs/benchmarks.md.

    export OMP_NUM_THREADS=1 KERAS_BACKEND=tensorflow     or torch
    python benchmarks/sisa_in_keras.py overhead           one shard and one slice beside a plain fit
    python benchmarks/sisa_in_keras.py requests           requests of 1 and of 10 rows beside a refit

Prints a table for each of two models and leaves nothing behind. `--pairs` and `--seconds` shorten a trial run.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import platform
import shutil
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import keras
import numpy as np
from measuring import SEED, Rows, a_folder, show, timed, with_interval

from pybrush.datasets import MNIST5K_TO_TRAIN, mnist5k
from pybrush_keras import SISA
from pybrush_keras.models import mlp, small_cnn

KEY, BATCH = bytes(range(32)), 64
MODELS: dict[str, Callable[[], Any]] = {"perceptron": lambda: mlp((28, 28, 1)), "CNN": small_cnn}
TRAIN = mnist5k().part(0, MNIST5K_TO_TRAIN)
X, Y = TRAIN.pixels[..., None], TRAIN.labels


def fit(make: Callable[[], Any], epochs: int, callback: SISA | None = None, without: Any = ()) -> tuple[float, float]:
    """Fit a new model; return seconds of fit and of the processor."""
    keras.utils.set_random_seed(SEED)
    model, keep = make(), np.setdiff1d(np.arange(len(X)), without)
    x, y = (X[keep], Y[keep]) if len(without) else (X, Y)
    callbacks = [] if callback is None else [callback]
    return timed(lambda: model.fit(x, y, batch_size=BATCH, epochs=epochs, callbacks=callbacks, verbose=0))[1:]


def epochs_of(make: Callable[[], Any], seconds: float) -> int:
    """Return how many epochs a plain fit takes that long for."""
    fit(make, 1)
    once, more = fit(make, 1)[0], fit(make, 4)[0]
    return max(1, math.ceil(seconds / max((more - once) / 3, 1e-3)))


# (a) One shard and one slice beside a plain fit


def overhead(make: Callable[[], Any], pairs: int, seconds: float) -> Rows:
    """Fit the same epochs with SISA(1, 1) and without, in turn; return ratios of wall and processor time.

    Both see every row once an epoch, and compile the model's step anew. SISA's time holds naming the rows, making the
    record and storing its state.
    """

    def with_sisa() -> tuple[float, float]:
        with a_folder() as folder:
            return fit(make, epochs, SISA(1, 1, record=folder / "record", ids=TRAIN.ids, key=KEY))

    epochs = epochs_of(make, seconds)
    with_sisa()  # warms up what is ours
    found = []
    for pair in range(pairs):
        runs = [lambda: fit(make, epochs), with_sisa]
        results = [run() for run in (runs if pair % 2 == 0 else reversed(runs))]
        found.append(results if pair % 2 == 0 else results[::-1])
    plain, ours = ([pair[place] for pair in found] for place in (0, 1))
    medians = [statistics.median(run[0] for run in runs) for runs in (plain, ours)]
    beyond = statistics.median(b[1] - a[1] for a, b in found)
    return [
        ("pairs, epochs, batches an epoch", f"{pairs}, {epochs}, {math.ceil(len(X) / BATCH)}"),
        ("seconds of a plain fit, of one with SISA, medians", f"{medians[0]:.2f}, {medians[1]:.2f}"),
        ("ratio of these medians (goal <= 1.10)", f"{medians[1] / medians[0]:.3f}"),
        ("seconds over a plain fit's, paired", with_interval([b[0] / a[0] for a, b in found])),
        ("processor seconds over a plain fit's, paired", with_interval([b[1] / a[1] for a, b in found])),
        ("processor seconds beyond a plain fit's, median", f"{beyond:.2f}"),
    ]


# (b) Requests of 1 and of 10 rows beside a refit


def requests(make: Callable[[], Any], pairs: int, seconds: float) -> Rows:
    """Forget rows from fresh copies of a record of 4 shards of 3 slices, and refit without them, in turn."""
    rows: list[tuple[str, str]] = []
    epochs, draw = epochs_of(make, seconds), np.random.default_rng(SEED)
    with a_folder() as folder:
        fit(make, epochs, SISA(4, 3, record=folder / "record", ids=TRAIN.ids, key=KEY, seed=SEED))
        for count in (1, 10):
            gone = [draw.choice(len(X), count, replace=False).tolist() for _ in range(pairs)]
            served = [_request(folder, make, places) for places in gone]
            refits = [_refit(folder / f"refit{count}", make, epochs, places) for places in gone]
            visits = statistics.median(result.cost.visits / result.cost.retrain_visits for _, result in served)
            ratios = [took / refit for (took, _), refit in zip(served, refits, strict=True)]
            medians = statistics.median(took for took, _ in served), statistics.median(refits)
            rows += [
                (f"seconds of a request of {count} rows, of a refit, medians", f"{medians[0]:.2f}, {medians[1]:.2f}"),
                ("seconds over a refit's, paired", with_interval(ratios)),
                ("visits over a refit's, median", f"{visits:.3f}"),
            ]
    return [("requests of each kind, epochs, stages", f"{pairs}, {epochs}, 12"), *rows]


def _request(folder: Path, make: Callable[[], Any], places: list[int]) -> tuple[float, Any]:
    """Forget rows from a fresh copy of the record; return seconds and result."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "record", copy)
    sisa, model = SISA(record=copy, ids=TRAIN.ids, key=KEY), make()
    result, seconds, _ = timed(lambda: sisa.unlearn(rows=places, guarantee="exact", model=model, x=X, y=Y, verbose=0))
    return seconds, result


def _refit(folder: Path, make: Callable[[], Any], epochs: int, places: list[int]) -> float:
    """Return the seconds of a fit of a record of the same plan without some rows."""
    shutil.rmtree(folder, ignore_errors=True)
    left = [name for place, name in enumerate(TRAIN.ids) if place not in set(places)]
    return fit(make, epochs, SISA(4, 3, record=folder, ids=left, key=KEY, seed=SEED), places)[0]


# The command line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["overhead", "requests"])
    parser.add_argument("--pairs", type=int, default=9, help="pairs of fits, or of a request and a refit")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of a plain fit, about")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("pybrush", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    backend = keras.backend.backend()
    if backend == "torch":
        __import__("torch").set_num_threads(1)
    print(
        f"Keras {keras.__version__} on {backend}, Python {platform.python_version()}, {platform.machine()}, one thread"
    )
    part = {"overhead": overhead, "requests": requests}[given.part]
    for name, make in MODELS.items():
        show(f"{given.part}, {name}, {backend}", part(make, given.pairs, given.seconds))


if __name__ == "__main__":
    main()
