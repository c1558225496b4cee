"""A table in Keras: named columns, several rows a person, EarlyStopping, and a request in another process.

    python examples/keras_tabular.py [folder]
    KERAS_BACKEND=torch python examples/keras_tabular.py [folder]

The measurements are those of scikit-learn's breast cancer set; which patient each row belongs to is made up. The
first process trains. The second one, years later, has the record with its key, the function that builds the model, and
the data; it erases one patient. Without a folder, everything goes into a temporary one.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow tells every process that there is no GPU

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_breast_cancer

from pybrush.record import Record
from pybrush_keras import SISA

TRAIN_ROWS, VALIDATION_ROWS, PATIENTS, EPOCHS = 400, 80, 100, 12
PATIENT = "patient-42"


def load():
    """Return inputs by name, labels, and the patients, of training, validation and test rows."""
    table = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(table.target))
    values, labels = table.data[order].astype("float32"), table.target[order]
    x = {"mean": values[:, :10], "error": values[:, 10:20], "worst": values[:, 20:]}
    patients = np.array([f"patient-{row % PATIENTS}" for row in range(len(labels))])
    cuts = slice(TRAIN_ROWS), slice(TRAIN_ROWS, TRAIN_ROWS + VALIDATION_ROWS), slice(TRAIN_ROWS + VALIDATION_ROWS, None)
    return [({name: column[cut] for name, column in x.items()}, labels[cut], patients[cut]) for cut in cuts]


def build():
    """Return a compiled model of three inputs; it knows nothing of PyBrush."""
    inputs = {name: layers.Input((10,), name=name) for name in ("mean", "error", "worst")}
    # Normalized in the model: a scaler fitted before would carry erased rows into all others.
    scaled = [layers.BatchNormalization(momentum=0.8)(value) for value in inputs.values()]
    hidden = layers.concatenate([layers.Dense(16, activation="relu")(value) for value in scaled])
    outputs = layers.Dense(2, activation="softmax")(layers.Dropout(0.1)(hidden))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def stopping():
    """Return a callback that ends a stage whose validation loss does not fall any more."""
    return keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)


def train(folder):
    """What the first process does; returns the accuracy on the test rows."""
    keras.utils.set_random_seed(1)
    (x, y, patients), (held_x, held_y, _), (test_x, test_y, _) = load()
    sisa = SISA(shards=2, slices=2, record=folder / "record", subjects=patients)
    model = build()
    model.fit(
        x, y, epochs=EPOCHS, batch_size=20, validation_data=(held_x, held_y), callbacks=[sisa, stopping()], verbose=0
    )
    whole = sisa.recorded().aggregate(model)
    return whole.evaluate(test_x, test_y, verbose=0, return_dict=True)["accuracy"]


def erase(folder):
    """What the second process does: the record, the model's builder and the data are all that it has."""
    (x, y, patients), validation, (test_x, test_y, _) = load()
    sisa = SISA(record=folder / "record", subjects=patients)
    result = sisa.unlearn(
        subjects=[PATIENT], guarantee="exact",
        model=build(), x=x, y=y, validation_data=validation[:2], callbacks=[stopping()], verbose=0,
    )  # fmt: skip
    result.report(folder / "erasure.html")
    result.model.save(folder / "deploy.keras")
    accuracy = result.model.evaluate(test_x, test_y, verbose=0, return_dict=True)["accuracy"]
    told = {"guarantee": type(result.guarantee).__name__, "forgotten": result.forgotten, "accuracy": accuracy}
    print(json.dumps({**told, "rebuilt": result.cost.stages_rebuilt, "stages": result.cost.stages}))


def in_another_process(folder):
    """Run `erase` in a fresh Python and return what it printed."""
    words = [sys.executable, __file__, "erase", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main(folder):
    (_, _, patients), _, _ = load()
    hers = int((patients == PATIENT).sum())
    before = train(folder)
    print(f"trained on {TRAIN_ROWS} rows of {PATIENTS} patients; accuracy on test rows {before:.3f}")

    told = in_another_process(folder)
    print(f"erased {PATIENT}: {told['forgotten']} rows, {told['rebuilt']} of {told['stages']} stages trained again")
    print(f"guarantee: {told['guarantee']}; accuracy on test rows {told['accuracy']:.3f}")

    record = Record.open(folder / "record")
    checked = record.verify()
    print(f"verify: {'clean' if checked.is_clean else 'NOT CLEAN'}, {checked.stages} stages, {checked.rows} rows")
    assert told["guarantee"] == "Exact" and told["forgotten"] == hers == 4
    assert told["rebuilt"] <= 2  # her rows lie in one shard and slice
    assert checked.is_clean and checked.rows == TRAIN_ROWS - hers
    assert min(before, told["accuracy"]) > 0.9
    assert (folder / "erasure.html").is_file() and (folder / "deploy.keras").is_file()


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "erase":
        erase(Path(sys.argv[2]))
    elif len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place))
