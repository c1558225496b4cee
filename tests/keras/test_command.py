"""The `pybrush` command on Keras, in this process: own code, what is trusted, what a plan foretells, and one twin."""

from contextlib import closing
from pathlib import Path

import keras
import numpy as np
import pytest
from hydra.utils import get_object

from pybrush.app import main
from pybrush.composing import build
from pybrush.errors import ConfigurationError
from pybrush.record import Record
from pybrush.trust import Trust, check_targets
from pybrush_keras import SISA
from pybrush_keras.adapter import KerasAdapter
from pybrush_keras.fitting import Fit
from pybrush_keras.sizes import sizes_of
from tests.conf.groups import composed
from tests.keras.nets import plain, table
from tests.untouched import untouched

QUIET = ["fit.verbose=0", "hydra/job_logging=none", "hydra/hydra_logging=none"]

OWN = """
import os
import keras
import numpy as np

class Rows:
    # 64 rows of six numbers in three classes, in plain arrays; what is gone is named by the environment.
    def __init__(self, **options):
        draw = np.random.default_rng(4)
        x, y = draw.normal(size=(64, 6)).astype("float32"), draw.integers(0, 3, 64)
        gone = [int(row) for row in os.environ["GONE"].split()]
        self.seen = {"validation_data": (x[40:] + 0.5, y[40:])}
        self.x, self.y = np.delete(x, gone, axis=0), np.delete(y, gone)

    def fit_arguments(self):
        return {"x": self.x, "y": self.y, **self.seen}

    def evaluate_arguments(self):
        return {"x": self.x, "y": self.y}

class Falling(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if "val_loss" in logs:
            self.model.optimizer.learning_rate = 0.01 * logs["val_loss"]
"""
TRAIN = [
    *("train", "framework=keras", "data._target_=own_rows.Rows", "model.shape=[6]", "model.classes=3", "test=false"),
    *("fit.epochs=4", "fit.batch_size=7", "fit.validation_freq=2", "fit.validation_batch_size=5"),
    *("fit.class_weight={0: 0.5, 1: 2.0}", "fit.shuffle=batch", "+callbacks.falling={_target_: own_rows.Falling}"),
    *("callbacks.sisa.shards=2", "callbacks.sisa.ids=content", "callbacks.sisa.subjects=null", "seed=3"),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with code of a user's own, and a key that several records share."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYBRUSH_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("GONE", "")
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "key").write_bytes(bytes(range(32)))
    (tmp_path / "own_rows.py").write_text(OWN)
    return tmp_path


def run(*words):
    return main([*words])


def test_a_training_and_a_request_have_the_bits_of_a_training_without_the_rows(here, monkeypatch, capsys):
    assert run(*TRAIN, *QUIET, "callbacks.sisa.record=a") == 0, capsys.readouterr().err
    (here / "rows.txt").write_text("3\n20\n")
    unlearn = ["unlearn", "record=a", "forget.kind=rows", "forget.file=rows.txt", "guarantee=exact"]
    with untouched("a"):
        assert run(*unlearn) == 1
    assert "allow=[own_rows.Rows]" in capsys.readouterr().err
    assert run(*unlearn, "allow=[own_rows]") == 0, capsys.readouterr().err
    assert run("verify", "record=a", "depth=replay", "stages=all", "allow=[own_rows]") == 0, capsys.readouterr().err

    monkeypatch.setenv("GONE", "3 20")
    assert run(*TRAIN, *QUIET, "callbacks.sisa.record=b") == 0, capsys.readouterr().err
    with closing(Record.open("a")) as one, closing(Record.open("b")) as other:
        assert one.ledger.wanted() == other.ledger.wanted()
        for key in one.ledger.wanted():
            (tree, arrays), (tree_too, arrays_too) = one.store.packed(key), other.store.packed(key)
            assert tree == tree_too
            assert all(np.array_equal(arrays[name], arrays_too[name]) for name in arrays)


def test_a_plan_foretells_what_a_record_then_holds(here, capsys):
    model, data = plain(), table()
    sisa = SISA(shards=2, slices=2, record=here / "record")
    arguments = Fit(epochs=4, callbacks=[sisa]).arguments(Arrays(data))
    sizes = sizes_of(sisa, model, arguments)
    assert (sizes.samples, sizes.shards, sizes.slices, sizes.epochs) == (64, 2, 2, 4)
    assert not sizes.has_subjects and not (here / "record").exists()
    model.fit(**data, epochs=4, verbose=0, callbacks=[sisa])
    with closing(Record.open(here / "record")) as record:
        held = [array.nbytes for array in record.store.packed(record.graph()[-1].key)[1].values()]
    assert sum(held) == pytest.approx(sizes.stage_bytes, rel=0.1)
    later = sizes_of(SISA(record=here / "record"), model, arguments)
    assert (later.shards, later.slices) == (2, 2)
    assert sizes_of(sisa, keras.Sequential([keras.layers.Dense(2)]), arguments).stage_bytes is None


class Arrays:
    def __init__(self, data):
        self.data = data

    def fit_arguments(self):
        return self.data


TRUST = Trust(["pybrush", *KerasAdapter.trusted], KerasAdapter.distrusted, (), KerasAdapter.builders)

TRUSTED = (
    *(
        "pybrush_keras.SISA",
        "pybrush_keras.models.mlp",
        "pybrush_keras.fitting.Fit",
        "pybrush_keras.datasets.DigitsData",
    ),
    *("keras.optimizers.Adam", "keras.optimizers.schedules.ExponentialDecay", "keras.callbacks.EarlyStopping"),
    *("keras.losses.Huber", "keras.metrics.AUC", "keras.regularizers.L2", "keras.initializers.Ones"),
)
UNTRUSTED = (
    *("os.system", "keras.saving.load_model", "keras.models.load_model", "keras.layers.TFSMLayer"),
    *("keras.layers.Lambda", "keras.optimizers.get", "keras.optimizers.deserialize", "keras.utils.get_file"),
    *("pybrush_keras.models.keras.saving.load_model", "keras.optimizers.Adam.from_config", "keras.Model"),
    *("pybrush_keras.export.load_export", "keras.src.utils.module_utils.LazyModule"),
)


@pytest.mark.parametrize("target", TRUSTED)
def test_what_a_configuration_of_keras_is_made_of_is_trusted(target):
    check_targets({"part": {"_target_": target}}, Path("config.yaml"), TRUST, get_object)


@pytest.mark.parametrize("target", UNTRUSTED)
def test_a_configuration_builds_nothing_else(target):
    with pytest.raises(ConfigurationError, match="not trusted"):
        check_targets({"part": {"_target_": target}}, Path("config.yaml"), TRUST, get_object)


def test_a_record_made_by_a_script_says_which_lines_to_use(here, capsys):
    model, sisa = plain(), SISA(record=here / "record", slices=2)
    model.fit(**table(), epochs=1, verbose=0, callbacks=[sisa])
    (here / "rows.txt").write_text("3\n")
    with untouched(here / "record"):
        assert run("unlearn", "record=record", "forget.kind=rows", "forget.file=rows.txt", "guarantee=exact") == 1
        lines = capsys.readouterr().err
        compile(lines[lines.index("from pathlib") :], "lines", "exec")
        assert "SISA(record='record'" in lines and "sisa.unlearn(rows=rows, guarantee='exact'" in lines
        assert run("verify", "record=record", "depth=replay") == 1
        lines = capsys.readouterr().err
        compile(lines[lines.index("from pybrush import") :], "lines", "exec")
        assert "replay(sisa, model=model, x=x, y=y, stages='touched'" in lines


def test_a_configuration_without_a_part_or_of_another_framework_is_refused(here):
    config = composed("framework=keras")
    config.model = {"_target_": "collections.Counter"}
    with pytest.raises(ConfigurationError, match=r"framework=NAME.*does not train a collections\.Counter"):
        build(config, KerasAdapter())
    config.fit = None
    with pytest.raises(ConfigurationError, match="adapter=keras and no fit"):
        build(config, KerasAdapter())
