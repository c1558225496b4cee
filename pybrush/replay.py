"""Replay: train a stage again from its recorded parent, and compare what comes of it with the stored state.

It is the third depth of verification, after `Record.verify`: whether the stored states are what the recorded rows,
seeds and settings lead to. States are compared in memory; nothing of the record changes, and the model is as before.
What replay sees and what it cannot see: docs/guarantees.md, "Verify, in three depths".
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pybrush.build import Sources, check_rows, holdings_of, outlook_of, train
from pybrush.errors import ConfigurationError, RecordError
from pybrush.plan.graph import Stage
from pybrush.record.compare import GroupDifference, Outcome, StateDifference, Tolerance, compare_states
from pybrush.record.fingerprint import environment_differences
from pybrush.record.record import Record
from pybrush.record.samples import Holdings, Samples
from pybrush.record.store import Manifest
from pybrush.record.trees import pack
from pybrush.standing import replaced_stages

__all__ = ["GroupDifference", "Outcome", "Replay", "StageReplay", "Tolerance", "Which", "replay"]

_log = logging.getLogger(__name__)

Which = Literal["touched", "all"] | Sequence[tuple[int, int]]
"""Stages: those that the last request rebuilt (without one the cheapest), all, or (shard, slice) pairs."""

_ORDER: tuple[Outcome, ...] = ("bit_identical", "within_tolerance", "mismatch")


@dataclass(frozen=True)
class StageReplay:
    """What came of training one stage again.

    Attributes:
        shard: counted from 0.
        slice: counted from 0.
        key: the stage's key.
        outcome: "bit_identical", "within_tolerance" or "mismatch".
        groups: how far the tensors of each part of the state are from the stored ones.
        places: the first places at which something differs that no tolerance covers.
        environment: what of the environment differs between the recorded training and this one.
        rows: rows it was trained on, copies counted.
        seconds: seconds that the training took.
    """

    shard: int
    slice: int
    key: str
    outcome: Outcome
    groups: tuple[GroupDifference, ...]
    places: tuple[str, ...]
    environment: tuple[str, ...]
    rows: int
    seconds: float


@dataclass(frozen=True)
class Replay:
    """What came of a replay.

    Attributes:
        tolerance: how far numbers were allowed to be apart, fixed before anything was trained.
        stages: the stages that were trained again.
        of: stages that the record has.
    """

    tolerance: Tolerance
    stages: tuple[StageReplay, ...]
    of: int

    @property
    def outcome(self) -> Outcome:
        """The weakest outcome of the stages."""
        return max((stage.outcome for stage in self.stages), key=_ORDER.index)


def replay(record: Record, sources: Sources, stages: Which = "touched", tolerance: Tolerance | None = None) -> Replay:
    """Train stages again, each from the stored state of its parent, and compare.

    Args:
        record: the opened record, its fingerprint already compared.
        sources: learner, data and names of its rows.
        stages: which ones.
        tolerance: how far numbers may be apart; None: `Tolerance()`.

    Raises:
        ConfigurationError: for stages that the record does not have.
        RecordError: for stages that are not built.
        MissingRowsError: where the data set no longer holds a row of such a stage.
        ContentError: where such a row changed.
        CorruptRecordError: where a state is damaged.
    """
    allowed = tolerance or Tolerance()
    chosen, samples = chosen_stages(record, stages), record.samples()
    holdings = holdings_of(record, samples, sources.roster)
    check_rows(record, samples, holdings, sources, chosen)
    _log.info(
        "stages to replay: %d; within tolerance means, for each tensor, at most %g + %g times its largest magnitude",
        *(len(chosen), allowed.absolute, allowed.relative),
    )
    before = sources.learner.read_state()
    try:
        found = sources.learner.session(lambda: _replay_all(record, sources, samples, holdings, chosen, allowed))
    finally:
        sources.learner.write_state(before)
    return Replay(allowed, found, len(record.graph()))


def chosen_stages(record: Record, which: Which) -> list[Stage]:
    """Return the stages of a record that are meant, parents first.

    Raises:
        ConfigurationError: for stages that the record does not have.
        RecordError: for stages that are not built.
    """
    whole = record.graph()
    replaced = replaced_stages(record, whole, record.stand_ins())  # an approximate method left nothing to train again
    graph = tuple(stage for stage in whole if stage not in replaced)
    if which == "all":
        chosen = list(graph)
    elif which == "touched":
        chosen = _touched(record, graph) or sorted(graph, key=lambda stage: stage.rows)[:1]
    else:
        chosen = _named(record, graph, which)
    missing = [f"({stage.shard}, {stage.slice})" for stage in chosen if not record.store.has(stage.key)]
    if missing or not chosen:
        raise RecordError(
            f"{record.folder} has no state of stage {', '.join(missing) or 'any'}: finish the fit or the request first."
        )
    return chosen


def _touched(record: Record, graph: Sequence[Stage]) -> list[Stage]:
    """Return the stages that the last request rebuilt and that still exist."""
    for request in reversed(record.requests):
        cells = {(shard, cell) for shard, cell in request.outcome.get("rebuilt", ())}
        if found := [stage for stage in graph if (stage.shard, stage.slice) in cells]:
            return found
    return []


def _named(record: Record, graph: Sequence[Stage], which: Any) -> list[Stage]:
    """Return the stages of (shard, slice) pairs."""
    try:
        pairs = {(int(shard), int(cell)) for shard, cell in which}
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"stages must be 'touched', 'all' or pairs (shard, slice), counted from 0; got {which!r}."
        ) from error
    chosen = [stage for stage in graph if (stage.shard, stage.slice) in pairs]
    unknown = sorted(pairs - {(stage.shard, stage.slice) for stage in chosen})
    if unknown or not chosen:
        known = ", ".join(f"({stage.shard}, {stage.slice})" for stage in graph)
        raise ConfigurationError(f"{record.folder} has no stages {unknown}; there are {known}.")
    return chosen


def _replay_all(
    record: Record, sources: Sources, samples: Samples, holdings: Holdings, chosen: list[Stage], tolerance: Tolerance
) -> tuple[StageReplay, ...]:
    found: list[StageReplay] = []
    paces = [record.store.manifest(stage.key) for stage in chosen]
    for number, stage in enumerate(chosen, start=1):
        rows = holdings.stage_rows(samples, stage.shard, stage.slice)
        outlook = outlook_of(record, chosen, number, chosen[number:], paces)
        trained = train(record, sources, stage, rows, outlook, files_under="")
        stored, manifest = record.store.load(stage.key)
        difference = compare_states(pack(stored), pack(sources.learner.read_state()), tolerance)
        found.append(_reported(stage, manifest, trained, difference))
        _log.info(
            "stage %d of %d is replayed: shard %d, slice %d, %.1f s; %s",
            *(number, len(chosen), stage.shard, stage.slice, trained.seconds, found[-1].outcome),
        )
    return tuple(found)


def _reported(stage: Stage, manifest: Manifest, trained: Manifest, difference: StateDifference) -> StageReplay:
    """Return the report; a manifest that tells of another training is a mismatch too."""
    names = ("steps", "learning_rate_sum")
    told = tuple(f"manifest.{name}" for name in names if getattr(manifest, name) != getattr(trained, name))
    return StageReplay(
        shard=stage.shard,
        slice=stage.slice,
        key=stage.key,
        outcome="mismatch" if told else difference.outcome,
        groups=difference.groups,
        places=(*told, *difference.places),
        environment=environment_differences([manifest.environment, trained.environment]),
        rows=stage.rows,
        seconds=trained.seconds,
    )
