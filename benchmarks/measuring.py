"""What the benchmarks beside a plain fit share: time, intervals, folders, tables."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

SEED = 0
RESAMPLES, LEVEL = 10_000, 0.95
Rows = Sequence[tuple[str, str]]


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what some work returns, its seconds, and its seconds of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - processor


def interval(values: Sequence[float], statistic: Callable[..., Any] = np.median) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic, from RESAMPLES draws with a fixed seed."""
    given = np.asarray(values)
    drawn = given[np.random.default_rng(SEED).integers(len(given), size=(RESAMPLES, len(given)))]
    low, high = np.quantile(statistic(drawn, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def with_interval(values: Sequence[float]) -> str:
    low, high = interval(values)
    return f"{statistics.median(values):.3f} [{low:.3f}, {high:.3f}]"


@contextmanager
def a_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


def show(title: str, rows: Rows) -> None:
    print(f"\n| {title} | |\n| --- | --- |")
    for name, value in rows:
        print(f"| {name} | {value} |")
