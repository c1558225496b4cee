"""What the processes of these tests are: the backend that was asked for, one thread, the same draws."""

import os
import time

import keras
import numpy as np


def test_keras_runs_on_the_backend_of_this_process():
    assert keras.backend.backend() == os.environ["KERAS_BACKEND"]


def test_every_test_begins_with_the_same_draws():
    drawn = keras.ops.convert_to_numpy(keras.random.uniform((2,)))
    keras.utils.set_random_seed(0)
    assert np.array_equal(drawn, keras.ops.convert_to_numpy(keras.random.uniform((2,))))


def test_a_backend_computes_with_one_thread():
    matrix = keras.ops.ones((1500, 1500))
    processor, wall = time.process_time(), time.perf_counter()
    for _ in range(10):
        product = keras.ops.matmul(matrix, matrix)
    assert float(product[0, 0]) == 1500
    assert time.process_time() - processor < 1.3 * (time.perf_counter() - wall)
