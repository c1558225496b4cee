"""The loader of one stage: the user's own settings over the stage's rows, in the record's order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from pybrush.errors import UnsupportedError
from pybrush.learner import Horizon
from pybrush.plan.order import Positions, Seeds, batch_sizes, cut


@dataclass(frozen=True)
class LoaderPlan:
    """A training loader, taken apart.

    Attributes:
        loader: the user's DataLoader, whose other settings every stage takes over.
        batch_size: rows in a batch.
        drop_last: whether a short last batch is dropped.
        workers: worker processes.
        sequential: whether it keeps the data set's order.
        persistent: whether workers live on between epochs, and so do their random numbers.
        prefetch: batches that each worker loads in advance.
    """

    loader: DataLoader[Any]
    batch_size: int
    drop_last: bool
    workers: int
    sequential: bool
    persistent: bool
    prefetch: int

    @property
    def dataset(self) -> Any:
        """The user's data set."""
        return self.loader.dataset

    def settings(self) -> dict[str, Any]:
        """Return what a record keeps; a request takes all of it but `drop_last` from there."""
        workers = {"persistent": self.persistent, "prefetch": self.prefetch} if self.workers else {}
        own = {"batch_size": self.batch_size, "drop_last": self.drop_last, "workers": self.workers}
        return own | workers

    def restored(self, settings: dict[str, Any]) -> LoaderPlan:
        """Return the plan with the settings of a record."""
        return replace(self, **{name: value for name, value in settings.items() if name != "drop_last"})


def loader_plan(loader: Any) -> LoaderPlan:
    """Take a training loader apart, or refuse it.

    Raises:
        UnsupportedError: with what to pass instead.
    """
    for problem in loader_problems(loader):
        raise UnsupportedError(f"SISA cannot train from this loader exactly: {problem}.")
    sequential = type(loader.sampler) is SequentialSampler
    batches = (loader.batch_size, loader.drop_last, loader.num_workers, sequential)
    return LoaderPlan(loader, *batches, loader.persistent_workers, loader.prefetch_factor or 2)


def loader_problems(loader: Any) -> Iterator[str]:
    """Say why a training loader cannot be cut into stages, each with what to pass instead."""
    if type(loader) is not DataLoader:
        yield (
            f"{type(loader).__name__} as training data: pass one plain torch.utils.data.DataLoader over one map-style "
            "data set, not a subclass, a list or a combined loader"
        )
    elif isinstance(loader.dataset, IterableDataset):
        yield "IterableDataset: pass a map-style data set, of which rows can be picked"
    elif loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler:
        yield "batch_sampler or batch_size=None: pass batch_size= alone, SISA cuts the batches itself"
    elif not is_whole(loader):
        yield (
            f"{type(loader.sampler).__name__}: pass shuffle=True or shuffle=False; a sampler that repeats, weighs or "
            "leaves out rows makes a row's use depend on the others"
        )


def is_whole(loader: DataLoader[Any]) -> bool:
    """Whether a loader takes every row of its data set once, by one of torch's two plain samplers."""
    if isinstance(loader.dataset, IterableDataset) or type(loader.batch_sampler) not in (BatchSampler, type(None)):
        return False
    sampler: Any = loader.sampler
    dataset: Any = loader.dataset
    plain = type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement)
    return plain and len(sampler) == len(dataset)


@dataclass(frozen=True)
class Share:
    """Which part of a stage's rows one of several processes trains on.

    Attributes:
        rank: counted from 0.
        world: number of processes.
    """

    rank: int = 0
    world: int = 1

    def of(self, order: Positions, batch_size: int) -> Positions:
        """Return this rank's rows of an epoch; all ranks have equally many.

        Row i goes to rank i modulo `world`. Where the rows do not divide, the epoch goes on with its own
        first rows, and BatchNorm needs two in every batch.
        """
        if self.world == 1:
            return order
        each = max(-(-len(order) // self.world), min(2, batch_size))
        padded: Positions = np.resize(order, each * self.world)
        return padded[self.rank :: self.world]


class _Epoch:
    """Where Lightning's `set_epoch` arrives."""

    def __init__(self, epoch: int, length: int) -> None:
        self.epoch, self.length = epoch, length

    def set_epoch(self, epoch: int) -> None:
        """Take note of the epoch that begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length))


class StageBatchSampler(BatchSampler):
    """The batches of one stage.

    `__iter__` is eager: Lightning calls it before the epoch's hooks, and twice in the first epoch of a later
    stage, so order and worker seeds come from the epoch it was told, never from how often it was called.
    """

    def __init__(
        self,
        plan: LoaderPlan,
        rows: Callable[[int], Positions],
        horizon: Horizon,
        seeds: Seeds,
        share: Share,
        generator: torch.Generator,
    ) -> None:
        count = len(share.of(rows(0), plan.batch_size))
        self._told = _Epoch(horizon.epochs_before, count)
        super().__init__(self._told, plan.batch_size, plan.drop_last)
        self._sizes = batch_sizes(count, plan.batch_size, plan.drop_last)
        self._rows, self._share, self._before = rows, share, horizon.epochs_before
        self._seeds, self._generator = seeds, generator

    def __iter__(self) -> Iterator[list[int]]:
        """Seed the workers' generator and return the epoch's batches of positions."""
        epoch = self._told.epoch - self._before
        self._generator.manual_seed(self._seeds(epoch, "workers", self._share.rank) & (2**63 - 1))
        return iter(cut(self._share.of(self._rows(epoch), self.batch_size), self.batch_size, self.drop_last))

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._sizes)


def stage_loader(
    plan: LoaderPlan, rows: Callable[[int], Positions], horizon: Horizon, seeds: Seeds, share: Share
) -> DataLoader[Any]:
    """Return a loader with the user's settings over one process's share of the rows of one stage."""
    own, generator = plan.loader, torch.Generator()
    settings: dict[str, Any] = {}
    if plan.workers:
        settings = {
            "prefetch_factor": plan.prefetch,
            "persistent_workers": plan.persistent,
            "multiprocessing_context": own.multiprocessing_context,
            "timeout": own.timeout,
        }
    return DataLoader(
        plan.dataset,
        batch_sampler=StageBatchSampler(plan, rows, horizon, seeds, share, generator),
        num_workers=plan.workers,
        collate_fn=own.collate_fn,
        pin_memory=own.pin_memory,
        worker_init_fn=own.worker_init_fn,
        generator=generator,
        **settings,
    )
