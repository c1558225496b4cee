"""Whether the stages on disk are those that manifests and graph name.

Each function raises CorruptRecordError at the first thing that does not fit.
"""

from __future__ import annotations

from collections.abc import Iterable

from pybrush.errors import CorruptRecordError
from pybrush.plan.graph import Stage
from pybrush.record import states
from pybrush.record.record import Record
from pybrush.record.store import Manifest


def check_initial(record: Record) -> None:
    """Look that the initial state is the one that the plan names."""
    if states.digest_of(*states.read(record.store.initial)) != record.plan.initial_digest:
        raise CorruptRecordError(f"the initial state in {record.store.initial} is not the one that was recorded.")


def check_manifests(record: Record, stages: Iterable[Stage]) -> tuple[list[str], list[str]]:
    """Check the manifest of each stage that has a state against its place in the graph.

    Returns:
        The keys of the stages that have a state, and of those that have none.
    """
    shas = {"": record.store.manifest("initial").sha256}
    built, missing = [], []
    for stage in stages:
        if record.store.has(stage.key):
            shas[stage.key] = _check_descent(record, stage, shas)
            built.append(stage.key)
        else:
            missing.append(stage.key)
    return built, missing


def check_sizes(record: Record, keys: Iterable[str]) -> None:
    """Look that the files of some states are there and none is cut short; no tensor is read."""
    for key in keys:
        record.store.check_complete(key)


def check_digests(record: Record, keys: Iterable[str]) -> None:
    """Check every byte of some states against their manifests."""
    for key in keys:
        record.store.check(key)


def check_place(record: Record, stage: Stage) -> Manifest:
    """Check the manifest of a stage against its place in the graph, and return it."""
    manifest = record.store.manifest(stage.key)
    expected = (stage.parent, stage.shard, stage.slice, stage.rows)
    came = (manifest.parent, manifest.shard, manifest.slice, manifest.rows)
    if came != expected:
        raise CorruptRecordError(f"stage {stage.key} should be (parent, shard, slice, rows) {expected}; it is {came}.")
    return manifest


def _check_descent(record: Record, stage: Stage, shas: dict[str, str]) -> str:
    """Check the manifest of a stage against its place in the graph and its parent; return the hash of its state."""
    manifest = check_place(record, stage)
    parent = shas.get("" if stage.starts_shard else stage.parent)
    if parent is not None and manifest.parent_sha256 != parent:
        raise CorruptRecordError(f"stage {stage.key} was not built from the state of its parent.")
    return manifest.sha256
