"""The benchmarks of SISA and of replay: intervals are right, and the parts run."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sisa.py"


def loaded():
    spec = importlib.util.spec_from_file_location("measuring", SCRIPT.with_name("measuring.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("statistic", [np.median, np.mean])
def test_intervals_are_those_of_scipy(statistic):
    values = np.random.default_rng(3).gamma(5, size=25)
    found = loaded().interval(values, statistic)
    drawn = stats.bootstrap(
        (values,), statistic, n_resamples=20_000, method="percentile", rng=np.random.default_rng(4), batch=500
    )
    spread = drawn.confidence_interval.high - drawn.confidence_interval.low
    assert found == pytest.approx(tuple(drawn.confidence_interval), abs=0.05 * spread)  # both are drawn


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["overhead", "--pairs", "1", "--seconds", "0.1"], "seconds over a plain fit's"),
        (["rebuild", "--pairs", "1", "--seconds", "0.05"], "seconds over those of the same stages"),
        (["requests", "--requests", "1", "--seeds", "1"], "| expected share of a retrain's visits | 0.150 |"),
    ],
    ids=["overhead", "rebuild", "requests"],
)
def test_a_part_prints_its_table_and_leaves_nothing_behind(words, said, tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_the_benchmark_of_replay_prints_its_table_and_leaves_nothing_behind(tmp_path):
    command = [sys.executable, SCRIPT.with_name("replay.py"), "--epochs", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| nothing | ") == 4 == done.stdout.count(" | 0e+00 |")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["overhead", "--pairs", "1", "--seconds", "0.1"], "ratio of these medians"),
        (["requests", "--pairs", "1", "--seconds", "0.1"], "seconds of a request of 10 rows"),
    ],
    ids=["overhead", "requests"],
)
def test_the_benchmark_of_keras_prints_its_tables_and_leaves_nothing_behind(words, said, backend, tmp_path):
    command, environment = [sys.executable, SCRIPT.with_name("sisa_in_keras.py"), *words], {"KERAS_BACKEND": backend}
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(said) == 2
    assert list(tmp_path.iterdir()) == []
