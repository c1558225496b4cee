"""Whether the stages on disk are those that manifests and graph name.

Each function raises CorruptRecordError at the first thing that does not fit.
"""

from __future__ import annotations

from collections.abc import Iterable

from pybrush.errors import CorruptRecordError
from pybrush.plan.graph import Stage
from pybrush.record import states
from pybrush.record.record import Record


def check_initial(record: Record) -> None:
    """Look that the initial state is the one that the plan names."""
    if states.digest_of(*states.read(record.store.initial)) != record.plan.initial_digest:
        raise CorruptRecordError(f"the initial state in {record.store.initial} is not the one that was recorded.")


def check_stages(record: Record, stages: Iterable[Stage]) -> tuple[str, ...]:
    """Check each stage that has a state against its files and its place in the graph; return the keys of the others."""
    shas = {"": _check_state(record, "initial")}
    missing = []
    for stage in stages:
        if record.store.has(stage.key):
            shas[stage.key] = _check_stage(record, stage, shas)
        else:
            missing.append(stage.key)
    return tuple(missing)


def _check_state(record: Record, key: str) -> str:
    """Check the files of a state against its manifest; return its hash."""
    sha256 = record.store.manifest(key).sha256
    if states.state_sha256(record.store.path(key)) != sha256:
        raise CorruptRecordError(f"the state in {record.store.path(key)} is not the one that its manifest names.")
    return sha256


def _check_stage(record: Record, stage: Stage, shas: dict[str, str]) -> str:
    """Check a stage against its place in the graph; return its hash."""
    manifest = record.store.manifest(stage.key)
    expected = (stage.parent, stage.shard, stage.slice, stage.rows)
    came = (manifest.parent, manifest.shard, manifest.slice, manifest.rows)
    if came != expected:
        raise CorruptRecordError(f"stage {stage.key} should be (parent, shard, slice, rows) {expected}; it is {came}.")
    parent = shas.get("" if stage.starts_shard else stage.parent)
    if parent is not None and manifest.parent_sha256 != parent:
        raise CorruptRecordError(f"stage {stage.key} was not built from the state of its parent.")
    return _check_state(record, stage.key)
