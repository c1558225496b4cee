"""What is shown of a training under SISA: History, files of loggers, progress bar. All stages are in it, labelled."""

import csv
import re
from collections import Counter

import keras
import numpy as np
import pytest

from pybrush_keras import SISA
from tests.keras import nets
from tests.keras.twin import KEY

STAGES = [(0, 0), (0, 1), (1, 0), (1, 1)]


def trained(folder, callbacks=(), shards=2, slices=2, epochs=4, **arguments):
    """Train a small model; return its History and its SISA."""
    sisa = SISA(shards=shards, slices=slices, record=folder / "record", ids="position", key=KEY, seed=5)
    model = nets.plain("sgd", normed=False, dropped=False)
    arguments = {"verbose": 0, "batch_size": 16} | arguments
    history = model.fit(**nets.table(), epochs=epochs, callbacks=[*callbacks, sisa], **arguments)
    assert history is model.history
    return history, sisa


def per_stage(sisa):
    """Return the number of epochs of each stage."""
    plan = sisa.recorded().plan
    return plan.epochs_per_slice


def test_history_holds_the_epochs_of_all_stages_labelled_with_shard_and_slice(tmp_path):
    history, sisa = trained(tmp_path, validation_split=0.2)
    count = per_stage(sisa)
    labels = list(zip(history.history["shard"], history.history["slice"], strict=True))
    assert labels == [stage for stage in STAGES for _ in range(count)]
    assert history.epoch == [*range(2 * count), *range(2 * count)]
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "shard", "slice"} == set(history.history)
    assert all(len(values) == 4 * count for values in history.history.values())
    assert all(np.isfinite(history.history["loss"]))


def test_history_of_a_request_holds_the_stages_that_were_rebuilt(tmp_path):
    _, sisa = trained(tmp_path)
    model = sisa.given.model
    result = sisa.unlearn(rows=[3], verbose=0)
    found = set(zip(model.history.history["shard"], model.history.history["slice"], strict=True))
    assert len(found) == result.cost.stages_rebuilt and found < set(STAGES) | {None}


def test_an_epoch_without_validation_has_none_there(tmp_path):
    history, _ = trained(tmp_path, validation_data=tuple(nets.table(9).values()), validation_freq=2)
    found = history.history["val_loss"]
    assert [value is None for value in found] == [(epoch + 1) % 2 == 1 for epoch in history.epoch]


def test_a_history_that_the_user_passes_holds_all_stages_too(tmp_path):
    own = keras.callbacks.History()
    history, _ = trained(tmp_path, [own])
    assert own.epoch == history.epoch and own.history == history.history


def test_a_csv_file_holds_all_stages_under_one_header(tmp_path):
    file = tmp_path / "log.csv"
    file.write_text("left by another fit\n")
    logger = keras.callbacks.CSVLogger(file)
    data = tuple(nets.table(9).values())
    history, sisa = trained(tmp_path, [logger], epochs=6, validation_data=data, validation_freq=2)
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [(row["shard"], row["slice"]) for row in rows] == [
        (str(shard), str(cell)) for shard, cell in STAGES for _ in range(per_stage(sisa))
    ]
    assert [int(row["epoch"]) for row in rows] == history.epoch
    assert [float(row["loss"]) for row in rows] == history.history["loss"]
    assert [row["val_loss"] == "NA" for row in rows] == [value is None for value in history.history["val_loss"]]
    assert logger.csv_file.closed
    assert "on_train_begin" not in vars(logger) and "on_train_end" not in vars(logger)


def test_a_csv_file_is_closed_after_an_error(tmp_path):
    class Failing(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if logs["shard"] == 1:
                raise OSError("full")

    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    with pytest.raises(OSError, match="full"):
        trained(tmp_path, [logger, Failing()])
    assert logger.csv_file.closed and "on_train_begin" not in vars(logger)


@pytest.mark.skipif(nets.BACKEND == "torch", reason="its summaries are TensorFlow's")
def test_tensorboard_gets_a_run_for_each_shard(tmp_path):
    board = keras.callbacks.TensorBoard(tmp_path / "logs", write_graph=False)
    trained(tmp_path, [board])
    runs = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.glob("logs/**/events*"))
    assert Counter(runs) == {"logs/shard_0/train": 2, "logs/shard_1/train": 2}
    assert board.log_dir == str(tmp_path / "logs")


@pytest.mark.parametrize("verbose", [1, 2])
def test_a_progress_bar_counts_each_stages_epochs_and_names_the_stage(verbose, tmp_path, capsys):
    _, sisa = trained(tmp_path, verbose=verbose)
    said = capsys.readouterr().out
    count = per_stage(sisa)
    assert re.findall(r"Shard (\d)/2, slice (\d)/2: stage (\d) of 4", said) == [
        (str(shard + 1), str(cell + 1), str(place)) for place, (shard, cell) in enumerate(STAGES, start=1)
    ]
    shown = re.findall(r"Epoch (\d+)/(\d+)", said)
    first = [(str(epoch), str(count)) for epoch in range(1, count + 1)]
    second = [(str(epoch), str(2 * count)) for epoch in range(count + 1, 2 * count + 1)]
    assert shown == 2 * [*first, *second]
    assert said.count("loss: ") >= 4 * count and "shard:" not in said


def test_nothing_is_shown_of_a_silent_fit(tmp_path, capsys):
    trained(tmp_path, verbose=0)
    assert capsys.readouterr().out == ""


def test_a_callback_that_stops_training_ends_its_stage_alone(tmp_path):
    class Stopping(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = logs["shard"] == 0

    history, sisa = trained(tmp_path, [Stopping()], epochs=6)
    found = Counter(zip(history.history["shard"], history.history["slice"], strict=True))
    assert found == {(0, 0): 1, (0, 1): 1, (1, 0): per_stage(sisa), (1, 1): per_stage(sisa)}
    assert history.epoch[:2] == [0, per_stage(sisa)]
