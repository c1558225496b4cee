"""Building stages: whatever the plan calls for and has no state is trained, from its parent's state."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pybrush.errors import ContentError, CorruptRecordError, MissingRowsError, RecordError
from pybrush.learner import Horizon, Learner
from pybrush.plan.graph import Stage
from pybrush.plan.order import Positions, Seeds, StageRows
from pybrush.plan.outlook import Outlook, clock
from pybrush.record.locks import coordinator_lock
from pybrush.record.record import Record
from pybrush.record.samples import Holdings, Samples, hold
from pybrush.record.store import Manifest
from pybrush.request import Roster

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sources:
    """What stages are built from.

    Attributes:
        learner: the model in its framework.
        data: what the learner trains on; the core hands it through.
        roster: the names of its rows.
    """

    learner: Learner
    data: Any
    roster: Roster


def missing_stages(record: Record, stages: Iterable[Stage]) -> list[Stage]:
    """Return the stages that have no state yet, parents first."""
    return [stage for stage in stages if not record.store.has(stage.key)]


def due_stages(record: Record, stages: Iterable[Stage], served: Container[int]) -> list[Stage]:
    """Return the stages to train, parents first: those without a state, but for shards that a release's state serves.

    Args:
        record: the record.
        stages: what its samples call for.
        served: the shards that a release's state serves.
    """
    return [stage for stage in missing_stages(record, stages) if stage.shard not in served]


def check_rows(record: Record, samples: Samples, holdings: Holdings, sources: Sources, todo: list[Stage]) -> None:
    """Check that the data set still holds, unchanged, every row that some stages train on.

    Raises:
        MissingRowsError: with the count of absent rows.
        ContentError: with the count of rows whose content changed under their id.
    """
    needed = np.zeros(len(samples), dtype=bool)
    for stage in todo:
        needed |= (samples.shards == stage.shard) & (samples.slices <= stage.slice)
    absent = int((samples.copies - holdings.present)[needed].sum())
    if absent:
        raise MissingRowsError(_absent_text(record, samples, absent))
    rows = np.flatnonzero(needed[holdings.sample])
    if record.plan.order == "sequential":
        _check_order(samples.positions[holdings.sample[rows]], holdings.position[rows])
    if not len(rows) or record.plan.naming == "content" or record.plan.contents == "off":
        return
    now = sources.roster.contents_at(holdings.position[rows])
    changed = int((now != samples.contents[holdings.sample[rows]]).any(axis=1).sum())
    if changed:
        raise ContentError(
            f"the content of {changed} rows is not what {record.folder} recorded under their ids. Restore the data; "
            "or, where labels were fixed or samples replaced on purpose, note that with record.amend(ids) and call "
            "unlearn(queued=True)."
        )


def _check_order(recorded: Positions, now: Positions) -> None:
    """Refuse a data set whose rows changed places, where the loader does not shuffle."""
    order = now[np.argsort(recorded, kind="stable")]
    if (order[1:] < order[:-1]).any():
        raise ContentError(
            "the rows of the data set are in another order than when they were recorded, and the loader keeps "
            "that order. Restore the order of the rows."
        )


def build(record: Record, sources: Sources, samples: Samples, holdings: Holdings, todo: list[Stage]) -> list[Manifest]:
    """Train some stages and publish each; call where the framework can train.

    Returns:
        The manifests of the stages that were trained here.
    """
    if not todo:
        return []
    known = _recorded(record)
    _announce(record, todo, known)
    built: list[Manifest] = []
    for number, stage in enumerate(todo, start=1):
        if record.store.has(stage.key):  # another process was faster
            continue
        outlook = _outlook(record, todo, number, built or known)
        rows = holdings.stage_rows(samples, stage.shard, stage.slice)
        built.append(_build_stage(record, sources, stage, rows, outlook))
        _log.info(
            "stage %d of %d is built: shard %d, slice %d, %d rows, %d epochs, %.1f s; %s left",
            *(number, len(todo), stage.shard, stage.slice, stage.rows, record.plan.epochs_per_slice),
            *(built[-1].seconds, clock(outlook.left(1.0, built[-1].seconds))),
        )
    return built


def _announce(record: Record, todo: list[Stage], known: list[Manifest]) -> None:
    """Say what will be built, and how long that took others."""
    rows, outlook = sum(stage.rows for stage in todo), _outlook(record, todo, 1, known)
    _log.info(
        "stages to build: %d, with %d rows in all and %d epochs each; %s left",
        *(len(todo), rows, record.plan.epochs_per_slice, clock(outlook.left())),
    )


def _outlook(record: Record, todo: list[Stage], number: int, manifests: list[Manifest]) -> Outlook:
    return outlook_of(record, todo, number, [s for s in todo[number:] if not record.store.has(s.key)], manifests)


def outlook_of(
    record: Record, stages: list[Stage], number: int, later: Iterable[Stage], manifests: Iterable[Manifest]
) -> Outlook:
    """Return what the stage of a number, counted from 1, should know of the others.

    Args:
        record: the record.
        stages: all that are trained.
        number: which of them is next.
        later: those that are still to be trained after it.
        manifests: of trainings that tell the pace.
    """
    epochs, paces = record.plan.epochs_per_slice, list(manifests)
    return Outlook(
        number=number,
        count=len(stages),
        shards=record.plan.shards,
        slices=record.plan.slices,
        visits=stages[number - 1].rows * epochs,
        later=sum(stage.rows for stage in later) * epochs,
        measured=sum(manifest.rows for manifest in paces) * epochs,
        seconds=sum(manifest.seconds for manifest in paces),
    )


def _recorded(record: Record) -> list[Manifest]:
    """Return the manifests of the record's stages that can be read; an estimate must stop nobody from forgetting."""
    found = []
    for stage in record.graph():
        if record.store.has(stage.key):
            with suppress(CorruptRecordError):
                found.append(record.store.manifest(stage.key))
    return found


def _build_stage(record: Record, sources: Sources, stage: Stage, rows: StageRows, outlook: Outlook) -> Manifest:
    manifest = train(record, sources, stage, rows, outlook, stage.key)
    publish(record, record.store.write_aside(sources.learner.read_state(), manifest), stage.key, record.store.publish)
    return manifest


def publish(record: Record, aside: Path, key: str, put: Callable[[Path, str], None]) -> None:
    """Publish what was written aside, or drop it.

    Args:
        record: the record.
        aside: the temporary folder.
        key: what is published.
        put: moves the folder to its key.

    Raises:
        RecordError: where the record does not want the key any more.
    """
    try:
        with coordinator_lock(record.folder):
            if key not in record.ledger.wanted():
                record.store.drop(aside)
                raise RecordError(f"the plan of {record.folder} changed while a state of it was made; call again.")
            put(aside, key)
    finally:
        record.store.let_go(aside)


def train(
    record: Record, sources: Sources, stage: Stage, rows: StageRows, outlook: Outlook, files_under: str
) -> Manifest:
    """Train a stage from its parent's state; the model then holds what came of it, and nothing is stored.

    Args:
        record: the record.
        sources: what the stage is trained from.
        stage: the stage.
        rows: its rows at hand.
        outlook: what is trained besides.
        files_under: key under which files that user code writes meanwhile are registered.

    Returns:
        What a manifest says of such a training.
    """
    plan, learner = record.plan, sources.learner
    state, parent = record.store.load("initial" if stage.starts_shard else stage.parent)
    learner.write_state(state)
    before = plan.epochs_per_slice * stage.trained_before
    total = plan.epochs_per_slice * plan.slices
    horizon = Horizon(stage.shard, stage.slice, plan.epochs_per_slice, before, total, files_under, outlook)
    started = time.perf_counter()
    seeds = Seeds(plan.seed, stage.shard, stage.slice)
    trained = learner.train_stage(sources.data, _ordering(plan.order, plan.seed, stage, rows), horizon, seeds)
    return Manifest(
        key=stage.key,
        parent=stage.parent,
        parent_sha256=parent.sha256,
        shard=stage.shard,
        slice=stage.slice,
        rows=stage.rows,
        steps=trained.steps,
        seconds=time.perf_counter() - started,
        learning_rate_sum=trained.learning_rate_sum,
        environment=learner.environment(),
        notes=trained.notes,
    )


def _ordering(order: str, seed: int, stage: Stage, rows: StageRows) -> Callable[[int], Positions]:
    """Return epoch -> positions; a partial, which an adapter can send to other processes."""
    if order == "sequential":
        return partial(_sequential, rows)
    return partial(rows.shuffled, seed, stage.shard, stage.slice)


def _sequential(rows: StageRows, epoch: int) -> Positions:  # noqa: ARG001 (each epoch alike)
    return rows.sequential()


def holdings_of(
    record: Record, samples: Samples, roster: Roster, *, absent_asked: bool = False, new_asked: bool = False
) -> Holdings:
    """Match a data set with the samples of a record and say what does not fit.

    Args:
        record: the record.
        samples: what it holds.
        roster: the data set at hand.
        absent_asked: whether the caller is about to forget the absent rows, so that they need no warning.
        new_asked: whether the caller is about to record the new rows, so that they need none either.
    """
    holdings = hold(samples, roster)
    if holdings.unrecorded and not new_asked:
        _log.warning(
            "%d rows of the data set are not recorded in %s (forgotten, or new); they are not trained on. "
            "record.admit() lets new ones join.",
            holdings.unrecorded,
            record.folder,
        )
    absent = int((samples.copies - holdings.present).sum())
    if absent and not absent_asked:
        _log.warning(
            "%d recorded rows are not in the data set any more and are still in the model; "
            "unlearn(missing=True) forgets them.",
            absent,
        )
    return holdings


def _absent_text(record: Record, samples: Samples, absent: int) -> str:
    share = absent / samples.rows
    text = (
        f"{absent} of the {samples.rows} rows that {record.folder} trains on are not in the data set, and a stage that "
        "has to be trained needs them. First suspect a split without a seed (random_split, train_test_split)"
    )
    if share > 0.01:
        text += "; so large a share also speaks for a changed preprocessing (compare the versions in the manifests)"
    return text + ". If the rows were deleted on purpose, call unlearn(missing=True)."
