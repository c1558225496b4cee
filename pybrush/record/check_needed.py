"""Whether what a training is about to rely on is what was recorded; asked before a request is accepted.

`Record.verify` looks at everything. Here only what is read or stays in the model is: the states from which
stages go on, the constituents that are kept, and the rows of the shards that are trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pybrush.errors import CorruptRecordError
from pybrush.plan.graph import Stage, constituents
from pybrush.record.check_ledger import check_some_cells
from pybrush.record.check_stages import check_initial, check_place
from pybrush.record.record import Record
from pybrush.record.samples import Samples
from pybrush.record.store import Manifest


def check_needed(record: Record, samples: Samples, stages: Sequence[Stage], todo: Sequence[Stage]) -> None:
    """Check all that a model of some stages is made from, of which some are still to be trained.

    Args:
        record: the record.
        samples: what it holds now.
        stages: of the record as it will be; those of which a release's state serves the shard need no state.
        todo: those of them that are to be trained.

    Raises:
        CorruptRecordError: at the first file or row that is not what was recorded.
    """
    check_some_cells(record, samples, {stage.shard for stage in todo})
    unbuilt = {stage.key for stage in todo}
    built = [stage for stage in stages if stage.key not in unbuilt and record.store.has(stage.key)]
    kept = {stage.key: check_place(record, stage) for stage in built}
    used = {stage.parent for stage in todo} | {stage.key for stage in constituents(stages).values()}
    leaning = False
    for key in sorted(used & kept.keys()):
        record.store.check(key)
        leaning |= record.store.leans_on_initial(key)
    if leaning or todo:  # what is built starts from the initial state or leaves tensors to it
        record.store.check("initial")
        check_initial(record)
    _check_parents(record, kept)
    _check_released(record, kept)


def _check_parents(record: Record, kept: Mapping[str, Manifest]) -> None:
    """Look that what was built from a kept state was built from this one: a state and its manifest could agree."""
    for stage in record.graph():
        parent, child = kept.get(stage.parent), kept.get(stage.key) or _replaced(record, stage)
        if parent is not None and child is not None and child.parent_sha256 != parent.sha256:
            raise CorruptRecordError(f"stage {stage.key} was not built from the state of its parent, {parent.key}.")


def _replaced(record: Record, stage: Stage) -> Manifest | None:
    """Return the manifest of a stage that is about to be replaced; what is wrong with it stops nobody."""
    try:
        return record.store.manifest(stage.key)
    except CorruptRecordError:
        return None


def _check_released(record: Record, kept: Mapping[str, Manifest]) -> None:
    """Look that a kept constituent is the one that was handed out."""
    for (text,) in record.ledger.rows("SELECT constituents FROM releases"):
        for state in json.loads(text).values():
            manifest = kept.get(state["key"])
            if manifest is not None and manifest.sha256 != state["sha256"]:
                reason = f"{record.store.path(manifest.key)} holds another state than was released"
                raise CorruptRecordError(f"{reason}; restore it from a backup.")
