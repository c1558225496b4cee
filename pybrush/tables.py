"""What the command prints: one table for each outcome, on standard output.

Only the command uses this; the library itself prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pybrush.guarantee import Exact
from pybrush.record import Record, Verification
from pybrush.result import UnlearnResult

if TYPE_CHECKING:
    from rich.console import Console

Rows = Iterable[tuple[str, Any]]


def show_training(record: Record, metrics: Mapping[str, float]) -> None:
    """Show what a training left, and how to go on."""
    plan, stages = record.plan, record.graph()
    seconds = sum(record.store.manifest(stage.key).seconds for stage in stages if record.store.has(stage.key))
    _show("trained", [
        ("record", record.folder),
        ("secret key", "not found here" if record.namer is None else "found; keep it, apart from the record"),
        ("rows", f"{record.samples().rows:,}"),
        ("shards x slices", f"{plan.shards} x {plan.slices}, {len(stages)} stages of {plan.epochs_per_slice} epochs"),
        ("seconds of training", f"{seconds:.1f}"),
        *((name, f"{value:.4f}") for name, value in metrics.items()),
    ])  # fmt: skip
    show_line(f"to forget samples:  pybrush unlearn record={record.folder} forget.file=FILE guarantee=exact")


def show_result(result: UnlearnResult) -> None:
    """Show what a request did, what is guaranteed, and what it cost beside a retrain."""
    cost, audit = result.cost, result.audit
    _show("would be forgotten" if result.model is None else "forgotten", [
        ("record", result.record),
        *([("request", result.request)] if result.request else []),
        ("rows forgotten", f"{result.forgotten:,}"),
        *_guaranteed(result),
        ("method", result.method),
        ("stages rebuilt", f"{cost.stages_rebuilt} of {cost.stages}"),
        ("row visits", f"{cost.visits:,}; a retrain: {cost.retrain_visits:,}"),
        ("seconds of training", f"{cost.seconds:.1f}; a retrain: {cost.retrain_seconds:.1f}"),
        *((name, _listed(audit[key])) for key, name in _AUDIT.items() if key in audit),
        *([("receipt", f"{result.salt} (opens the request's commitment; kept nowhere else)")] if result.salt else []),
        *(("note", note) for note in result.notes),
    ])  # fmt: skip


_AUDIT = {
    "artefacts": "files to be removed",
    "artefacts_unlinked": "files removed",
    "searched": "searched the record for",
    "raw_ids_found_in": "ids found in",
    "equal_rows_left": "equal rows that stay",
}


def show_verification(record: Record, found: Verification) -> None:
    """Show what was found to be true of a record."""
    _show("clean" if found.is_clean else "not finished", [
        ("record", record.folder),
        ("stages", f"{found.stages} match their manifests"),
        ("stages to be built", len(found.missing)),
        ("rows", f"{found.rows:,}"),
        ("events", f"{found.events} in an unbroken chain"),
        ("unfinished requests", _listed(found.pending)),
        ("stages to be collected", len(found.unwanted)),
        ("files of user code", found.artefacts),
    ])  # fmt: skip


def show_line(text: str) -> None:
    """Show one line, whole."""
    _console().print(text, soft_wrap=True)


def _guaranteed(result: UnlearnResult) -> Rows:
    guarantee = result.guarantee
    yield "guarantee", type(guarantee).__name__
    if isinstance(guarantee, Exact):
        yield "same bits as", guarantee.reference
        yield from (("but for", difference) for difference in guarantee.differences)
        declared = [assumption.name for assumption in guarantee.assumptions if assumption.how != "proved"]
        yield "taken on trust", _listed(declared)


def _listed(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "\n".join(map(str, value)) or "none"
    return str(value)


def _show(title: str, rows: Rows) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(Text(name), Text(str(value), overflow="fold"))
    _console().print(table)


def _console() -> Console:
    from rich.console import Console

    return Console(markup=False, highlight=False)
