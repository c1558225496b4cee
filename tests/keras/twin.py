"""The cases that are trained twice, and the fresh process that trains them without the forgotten rows.

As a script it reads one job a line and answers each with a value or a traceback. A "fit" trains a case on data from
which the rows were physically taken, from the same initial weights and another state of every random generator.
"""

import json
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
from keras import callbacks, layers, optimizers

from pybrush.record import Record
from pybrush_keras import SISA
from tests.keras import nets

KEY, SEED = bytes(range(32)), 5
TENSORFLOW, TORCH = ("tensorflow",), ("torch",)
BACKENDS = TENSORFLOW + TORCH


@dataclass(frozen=True)
class Case:
    """One training; `gone` are the positions that a request forgets."""

    model: Callable[[], Any] = nets.plain
    data: Callable[[], dict[str, Any]] = nets.table
    wrap: Callable[[dict[str, Any]], dict[str, Any]] = dict
    callbacks: tuple[Callable[[], Any], ...] = ()
    shards: int = 2
    slices: int = 2
    epochs: int = 2
    gone: tuple[int, ...] = (3, 20)
    fit: dict[str, Any] = field(default_factory=dict)
    sisa: dict[str, Any] = field(default_factory=dict)
    floats: str = "float32"
    backends: tuple[str, ...] = BACKENDS
    long_on: tuple[str, ...] = ()


def scheduled():
    return optimizers.SGD(optimizers.schedules.ExponentialDecay(0.2, 4, 0.7), momentum=0.9)


def accumulating():
    return optimizers.Adam(0.02, gradient_accumulation_steps=3)


def fast():
    return optimizers.Adam(0.1)


def stopping():
    return callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True, start_from_epoch=1)


def falling():
    return callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, min_delta=0.05)


def rising():
    return callbacks.LearningRateScheduler(lambda epoch, rate: rate * 1.1)


def validated():
    return {"validation_data": tuple(nets.table(20, seed=9).values())}


ONE = {"shards": 1}
SCALED, HALVES, BARE = "mixed_float16", "mixed_bfloat16", "bfloat16"

CASES = {
    "plain": Case(shards=3, slices=1, fit={"class_weight": {0: 1.0, 1: 0.5, 2: 2.0}}),
    "three by three": Case(shards=3, slices=3, epochs=3, long_on=BACKENDS),
    "neither": Case(lambda: nets.plain("sgd", normed=False, dropped=False), shards=1, slices=1),
    "normed": Case(lambda: nets.plain(dropped=False), slices=3, long_on=BACKENDS, **ONE),
    "functional": Case(nets.functional, nets.pairs, slices=3, **ONE),
    "own step": Case(lambda: nets.compiled(nets.OwnStep(), metrics=None), slices=1),
    "own loss": Case(lambda: nets.compiled(nets.OwnLoss()), nets.weighted, **ONE),
    "adversaries": Case(
        lambda: nets.compiled(nets.Adversaries(), loss=None, metrics=None), sisa={"outputs": "values"},
        long_on=BACKENDS, **ONE
    ),
    "texts": Case(nets.reading, nets.texts, fit={"shuffle": "batch", "batch_size": 6}, long_on=TENSORFLOW, **ONE),
    "images": Case(nets.seeing, nets.images, fit={"shuffle": False}, **ONE),
    "scaled": Case(lambda: nets.typed(SCALED, lambda: optimizers.SGD(0.1)), epochs=3, **ONE),
    "halves": Case(lambda: nets.typed(HALVES, "adam"), long_on=TENSORFLOW, **ONE),
    "bare halves": Case(lambda: nets.typed(BARE, "adam"), long_on=BACKENDS, **ONE),
    "doubles": Case(nets.plain, nets.doubles, floats="float64", long_on=BACKENDS, **ONE),
    "accumulation": Case(lambda: nets.plain(accumulating), long_on=BACKENDS, **ONE),
    "schedule": Case(lambda: nets.plain(scheduled), **ONE),
    "lazy": Case(nets.lazy, slices=1, long_on=BACKENDS),
    "stopping": Case(
        lambda: nets.plain(fast), callbacks=(stopping, falling), epochs=6, slices=1, fit=validated()
    ),
    "counting": Case(
        lambda: nets.plain("sgd"), callbacks=(nets.Counting,), slices=1, fit={"validation_split": 0.2}
    ),
    "rising": Case(
        lambda: nets.plain("sgd"), callbacks=(rising, callbacks.TerminateOnNaN), epochs=4, long_on=BACKENDS,
        fit=validated() | {"validation_freq": 2},
    ),
    "drawing": Case(nets.drawing, callbacks=(nets.Annealing,), epochs=4, gone=(20,), **ONE),
    "thawing": Case(callbacks=(nets.Thawing,), epochs=3, long_on=TENSORFLOW, **ONE),
    "eager": Case(lambda: nets.compiled(nets.OwnLoss(), run_eagerly=True), long_on=BACKENDS, **ONE),
    "source": Case(wrap=nets.as_source, slices=1, fit={"batch_size": None, "shuffle": True}),
    "several steps": Case(
        lambda: nets.plain(jit_compile=True, steps_per_execution=4), fit={"shuffle": False}, backends=TENSORFLOW,
        long_on=BACKENDS, **ONE,
    ),
    "pipeline": Case(
        wrap=nets.as_pipeline, fit={"batch_size": None, "validation_data": nets.pipeline}, backends=TENSORFLOW,
        callbacks=(stopping,), **ONE,
    ),
    "compiled": Case(lambda: nets.plain(jit_compile=True), backends=TORCH, long_on=BACKENDS, **ONE),
}  # fmt: skip
"""The long ones differ from another one in one thing, or take their time to compile."""


def chosen(case):
    return nets.BACKEND in case.backends


def data_of(case, gone=()):
    """Return a case's data, from which some rows are physically taken."""
    return {name: _without(value, list(gone)) for name, value in case.data().items()}


def _without(value, gone):
    return keras.tree.map_structure(lambda leaf: np.delete(leaf, gone, axis=0), value)


def ids_of(case, gone=()):
    """Return one id for each row of a case's data that is left."""
    (leaf, *_) = keras.tree.flatten(case.data())
    return [f"row {place}" for place in range(len(leaf)) if place not in gone]


def sisa_of(case, folder, gone=()):
    """Return a case's SISA; the record is folder / "record"."""
    settings = {"shards": case.shards, "slices": case.slices, "key": KEY, "seed": SEED, "ids": ids_of(case, gone)}
    return SISA(record=Path(folder) / "record", **(settings | case.sisa))


def fit(name, folder, gone=()):
    """Train a case without some rows; return its model, its SISA and its data."""
    case = CASES[name]
    keras.config.set_floatx(case.floats)
    keras.utils.set_random_seed(1)
    model, data, sisa = case.model(), data_of(case, gone), sisa_of(case, folder, gone)
    own = [make() for make in case.callbacks]
    arguments = {"epochs": case.epochs, "batch_size": 5, "verbose": 0} | case.fit
    model.fit(**case.wrap(data), **called(arguments), callbacks=[*own, sisa])
    return model, sisa, data


def called(arguments):
    """Return arguments, those that are made when they are needed."""
    return {name: value() if callable(value) else value for name, value in arguments.items()}


def fit_without(name, folder, gone):
    """Do so in a process that has other random numbers and other names of layers."""
    keras.config.set_floatx(CASES[name].floats)
    np.random.seed(99)  # noqa: NPY002
    layers.Dense(2)
    layers.Dropout(0.5)
    fit(name, folder, gone)
    keras.config.set_floatx("float32")
    keras.utils.clear_session()
    return "done"


def assert_same_record(one, other):
    """Same stages under the same keys, with the same bits in every array and attribute."""
    a, b = (Record.open(Path(folder) / "record", KEY) for folder in (one, other))
    assert a.ledger.wanted() == b.ledger.wanted() == a.store.keys() == b.store.keys()
    assert len(a.graph()) > 0
    for key in a.store.keys() | {"initial"}:
        (tree_a, arrays_a), (tree_b, arrays_b) = a.store.packed(key), b.store.packed(key)
        assert tree_a == tree_b and arrays_a.keys() == arrays_b.keys()
        differ = [name for name in arrays_a if not np.array_equal(arrays_a[name], arrays_b[name], equal_nan=True)]
        assert not differ, (key, differ)
    for record in (a, b):
        record.verify()
        record.close()


JOBS = {"fit": fit_without}


class FreshProcess:
    """Another process, which knows a case's name and never sees the forgotten rows."""

    def __init__(self):
        self.process = None

    def ask(self, job, /, **order):
        """Have a job done there and return its answer; fails with the traceback of there."""
        if self.process is None:
            command = [sys.executable, "-m", "tests.keras.twin"]
            root = Path(__file__).parents[2]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root
            )
        self.process.stdin.write(json.dumps({"do": job, **order}, default=str).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line or b'{"error": "the process died"}')
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def close(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()


def serve():
    """Do what FreshProcess asks for until its pipe is closed."""
    answers_to, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            order = json.loads(line)
            answer = {"value": JOBS[order.pop("do")](**order)}
        except Exception:  # noqa: BLE001 (whatever it is, the test has to see it)
            answer = {"error": traceback.format_exc()}
        answers_to.write(json.dumps(answer) + "\n")
        answers_to.flush()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve()
