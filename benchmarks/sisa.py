"""What SISA costs in Lightning: beside a plain fit, and when requests come. Method and figures: docs/benchmarks.md.

    OMP_NUM_THREADS=1 python benchmarks/sisa.py overhead     one shard and one slice beside plain Lightning
    OMP_NUM_THREADS=1 python benchmarks/sisa.py rebuild      a request beside the fit's own time for the same stages
    OMP_NUM_THREADS=1 python benchmarks/sisa.py requests     requests of one sample beside their expected cost

Prints tables and leaves nothing behind. `--pairs`, `--seconds`, `--requests` and `--seeds` shorten a trial run.
"""

from __future__ import annotations

import argparse
import logging
import math
import platform
import shutil
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from measuring import SEED, Rows, a_folder, interval, show, timed, with_interval
from torch.utils.data import DataLoader, Subset

from pybrush.plan.cost import expected_cost
from pybrush.record import Record
from pybrush_lightning import SISA
from pybrush_lightning.datasets import DigitsData, MNIST5kData
from pybrush_lightning.models import MLP, SmallCNN

KEY = bytes(range(32))


# Measuring


def trainer(epochs: int, *callbacks: Any) -> L.Trainer:
    """Return a trainer without bars, loggers and checkpoints."""
    return L.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip


# (a) One shard and one slice beside plain Lightning


def overhead(pairs: int, seconds: float) -> Rows:
    """Fit the same epochs with SISA(1, 1) and without, in turn; return ratios of wall and processor time.

    Both see every row once an epoch. SISA's time holds naming the rows, making the record and storing its state.
    """
    train = MNIST5kData().train
    loader = DataLoader(train, batch_size=64, shuffle=True)

    def fit(epochs: int, *callbacks: Any) -> tuple[float, float]:
        L.seed_everything(SEED, verbose=False)
        model, runner = SmallCNN(), trainer(epochs, *callbacks)
        return timed(lambda: runner.fit(model, loader))[1:]

    def with_sisa(epochs: int) -> tuple[float, float]:
        with a_folder() as folder:
            return fit(epochs, SISA(1, 1, record=folder / "record", ids="ids", key=KEY))

    with_sisa(1)  # warms both up
    once, twice = fit(1)[0], fit(3)[0]
    epochs = max(1, math.ceil(seconds / max((twice - once) / 2, 1e-3)))
    found = []
    for pair in range(pairs):
        runs: list[Callable[[int], tuple[float, float]]] = [fit, with_sisa]
        results = [run(epochs) for run in (runs if pair % 2 == 0 else reversed(runs))]
        found.append(results if pair % 2 == 0 else results[::-1])
    wall = [sisa[0] / plain[0] for plain, sisa in found]
    processor = [sisa[1] / plain[1] for plain, sisa in found]
    beyond = statistics.median(sisa[1] - plain[1] for plain, sisa in found)
    return [
        ("pairs, epochs, batches an epoch", f"{pairs}, {epochs}, {len(loader)}"),
        ("seconds of a plain fit, median", f"{statistics.median(plain[0] for plain, _ in found):.2f}"),
        ("seconds over a plain fit's (goal: upper end <= 1.05)", with_interval(wall)),
        ("processor seconds over a plain fit's", with_interval(processor)),
        ("processor seconds beyond a plain fit's, median", f"{beyond:.2f}"),
    ]


# (b) A request beside the fit's own time for the same stages


def rebuild(pairs: int, seconds: float) -> Rows:
    """Forget one sample from fresh copies of a record; return seconds over those of the same stages in the fit."""
    train = MNIST5kData().train
    loader = DataLoader(train, batch_size=64, shuffle=True)
    with a_folder() as folder:
        epochs = 2
        while True:
            record = folder / f"record{epochs}"
            _fit(record, loader, SmallCNN(), epochs, 2, 2)
            stages = _stage_seconds(record)
            shortest = min(stages.values())
            if shortest >= seconds:
                break
            epochs = max(epochs + 1, math.ceil(epochs * 1.1 * seconds / shortest))
        rows = np.random.default_rng(SEED).choice(len(train), pairs, replace=False)
        ratios, single = [], []
        for row in rows.tolist():
            took, result, before = _request(folder, record, loader, SmallCNN(), epochs, row)
            rebuilt = _stage_seconds(folder / "copy").keys()
            changed = [place for place, key in _keys(folder / "copy").items() if key != before[place]]
            assert len(changed) == result.cost.stages_rebuilt and set(changed) <= rebuilt
            ratios.append(took / sum(stages[place] for place in changed))
            single.append(took - sum(stages[place] for place in changed))
    return [
        ("requests, stages, epochs of a stage", f"{pairs}, {len(stages)}, {-(-2 * epochs // 3)}"),
        ("seconds of a stage in the fit", " ".join(f"{value:.2f}" for value in stages.values())),
        ("seconds over those of the same stages (goal <= 1.10)", with_interval(ratios)),
        ("seconds beyond them, median", f"{statistics.median(single):.2f}"),
    ]


# (c) Requests of one sample beside their expected cost


def requests(count: int, seeds: int, epochs: int = 20) -> Rows:
    """Forget one sample of the digits at a time, each from a copy of the record of 5 shards of 4 slices."""
    data = DigitsData(batch_size=16)
    train, loader = data.train, data.train_dataloader()
    samples = len(train)
    expected = expected_cost(samples, 5, 4, epochs, 1)
    share = expected.visits / expected.retrain_visits
    retrain = epochs * (samples - 1)
    with a_folder() as folder:
        _fit(folder / "record", loader, MLP(64), epochs, 5, 4)
        rows = np.random.default_rng(SEED).choice(samples, count, replace=False).tolist()
        plain = [_plain(train, row, epochs) for row in rows]
        served = [_request(folder, folder / "record", loader, MLP(64), epochs, row) for row in rows]
    visits = [result.cost.visits / retrain for _, result, _ in served]
    steps = [result.cost.steps / (epochs * math.ceil((samples - 1) / 16)) for _, result, _ in served]
    training = [result.cost.seconds / seconds for (_, result, _), seconds in zip(served, plain, strict=True)]
    whole = [took / seconds for (took, _, _), seconds in zip(served, plain, strict=True)]
    apart = [_accuracies(data, epochs, seed) for seed in range(seeds)]
    ours, theirs = (statistics.mean(column) for column in zip(*apart, strict=True))
    return [
        ("requests, samples, epochs, seeds", f"{count}, {samples}, {epochs}, {seeds}"),
        ("expected share of a retrain's visits", f"{share:.3f}"),
        ("visits, mean share (goal <= 1.10 x)", _beside(visits, share)),
        ("optimizer steps, mean share", _beside(steps, share)),
        ("seconds of training, mean share (goal <= 1.10 x)", _beside(training, share)),
        ("seconds of the whole request, mean share", _beside(whole, share)),
        ("accuracy of the aggregate, of one plain model", f"{ours:.3f}, {theirs:.3f}"),
        ("points under (goal <= 2)", f"{100 * (theirs - ours):.2f}"),
    ]


def _beside(shares: Sequence[float], expected: float) -> str:
    low, high = interval(shares, np.mean)
    mean = statistics.mean(shares)
    return f"{mean:.3f} [{low:.3f}, {high:.3f}], {mean / expected:.2f} x"


def _plain(train: Any, row: int, epochs: int) -> float:
    """Return the seconds of a plain fit without one row."""
    left = Subset(train, [other for other in range(len(train)) if other != row])
    L.seed_everything(SEED, verbose=False)
    model, runner = MLP(64), trainer(epochs)
    return timed(lambda: runner.fit(model, DataLoader(left, batch_size=16, shuffle=True)))[1]


def _accuracies(data: Any, epochs: int, seed: int) -> tuple[float, float]:
    """Return the test accuracy of the aggregate of 5 shards of 4 slices, and of one plain model."""
    found = []
    with a_folder() as folder:
        sisa = SISA(5, 4, record=folder / "record", ids="ids", key=KEY, seed=seed)
        for callbacks in ((sisa,), ()):
            L.seed_everything(seed, verbose=False)
            model, runner = MLP(64), trainer(epochs, *callbacks)
            runner.fit(model, data.train_dataloader())
            tested = runner.test(model, data.test_dataloader(), verbose=False)
            found.append(float(tested[0]["test/accuracy"]))
    return found[0], found[1]


# Records


def _fit(record: Path, loader: Any, model: Any, epochs: int, shards: int, slices: int) -> None:
    L.seed_everything(SEED, verbose=False)
    trainer(epochs, SISA(shards, slices, record=record, ids="ids", key=KEY, seed=SEED)).fit(model, loader)


def _request(folder: Path, record: Path, loader: Any, model: Any, epochs: int, row: int) -> tuple[float, Any, Any]:
    """Forget a row from a fresh copy of a record; return seconds, result, and the stages' keys before."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(record, copy)
    before = _keys(copy)
    runner = trainer(epochs, SISA(record=copy, ids="ids", key=KEY))
    result, seconds, _ = timed(
        lambda: runner.unlearn(rows=[row], guarantee="exact", model=model, train_dataloaders=loader)
    )
    return seconds, result, before


def _keys(folder: Path) -> dict[tuple[int, int], str]:
    record = Record.open(folder, KEY)
    found = {(stage.shard, stage.slice): stage.key for stage in record.graph()}
    record.close()
    return found


def _stage_seconds(folder: Path) -> dict[tuple[int, int], float]:
    record = Record.open(folder, KEY)
    found = {(stage.shard, stage.slice): record.store.manifest(stage.key).seconds for stage in record.graph()}
    record.close()
    return found


# The command line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["overhead", "rebuild", "requests"])
    parser.add_argument("--pairs", type=int, default=15, help="pairs of fits, or requests of the part rebuild")
    parser.add_argument("--seconds", type=float, help="least seconds of a plain fit (10), or of a stage (3)")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "pybrush"):
        logging.getLogger(name).setLevel(logging.ERROR)
    versions = f"torch {torch.__version__}, lightning {L.__version__}, Python {platform.python_version()}"
    print(f"{versions}, {platform.machine()}, one thread")
    parts = {
        "overhead": lambda: overhead(given.pairs, given.seconds or 10.0),
        "rebuild": lambda: rebuild(given.pairs, given.seconds or 3.0),
        "requests": lambda: requests(given.requests, given.seeds),
    }
    show(given.part, parts[given.part]())


if __name__ == "__main__":
    main()
