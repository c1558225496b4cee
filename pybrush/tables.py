"""What the command prints: one table for each outcome, on standard output.

Only the command uses this; the library itself prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pybrush.guarantee import Certified, Exact
from pybrush.plan import epochs_per_slice, forecast
from pybrush.plan.forecast import Price, Sizes
from pybrush.record import Record, RecordInfo, Verification
from pybrush.record.info import HeldRelease, HeldRequest
from pybrush.record.receipt import Receipt
from pybrush.replay import Replay, StageReplay
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


def show_forecast(sizes: Sizes, requests: Iterable[int]) -> None:
    """Show what a training in shards and slices will cost, and what requests on it will."""
    found = forecast.prices(sizes, requests)
    one, ledger = sizes.stage_bytes, _bytes(forecast.ledger_bytes(sizes))
    states = sizes.shards * sizes.slices + 1
    place = f"{states} of them; what one takes is not known: say model_bytes="
    if one is not None:
        place = f"about {_bytes(states * one)}: {states} of up to {_bytes(one)}, parameters, buffers and two moments"
    disk = [("states on disk", place), ("ledger on disk", f"about {ledger}")]
    _show_prices(sizes, found, forecast.training_share(sizes), disk)


def show_recorded(record: Record, requests: Iterable[int]) -> None:
    """Show what requests on a record will cost, beside what it was measured to take."""
    plan, stages, rows = record.plan, record.graph(), record.samples().rows
    subjects = bool(record.ledger.rows("SELECT 1 FROM subjects LIMIT 1"))
    sizes = Sizes(rows, plan.shards, plan.slices, plan.epochs, has_subjects=subjects)
    keys = ["initial", *(stage.key for stage in stages if record.store.has(stage.key))]
    measured = sum(file.stat().st_size for key in keys for file in record.store.path(key).iterdir())
    disk = [
        ("states on disk", f"{_bytes(measured)}; {len(keys)} of them"),
        ("ledger on disk", _bytes(record.ledger.path.stat().st_size)),
    ]
    share = sum(stage.rows for stage in stages) * plan.epochs_per_slice / (rows * plan.epochs)
    _show_prices(sizes, forecast.prices(sizes, requests), share, disk)


def show_result(result: UnlearnResult) -> None:
    """Show what a request did, what is guaranteed, and what it cost beside a retrain."""
    cost, audit = result.cost, result.audit
    _show("would be forgotten" if result.model is None else "forgotten", [
        ("record", result.record),
        *([("request", result.request)] if result.request else []),
        ("rows forgotten", f"{result.forgotten:,}"),
        *([("rows amended", f"{result.amended:,}")] if result.amended else []),
        *([("rows admitted", f"{result.admitted:,}")] if result.admitted else []),
        *([("entries of the queue", ", ".join(map(str, result.entries)))] if result.entries else []),
        *_guaranteed(result),
        ("method", result.method),
        ("stages rebuilt", f"{cost.stages_rebuilt} of {cost.stages}"),
        ("row visits", f"{cost.visits:,}; a retrain: {cost.retrain_visits:,}"),
        ("seconds of training", f"{cost.seconds:.1f}; a retrain: {cost.retrain_seconds:.1f}"),
        *((name, _listed(audit[key])) for key, name in _AUDIT.items() if key in audit),
        *([("receipt", f"{result.salt} (part of the receipt; kept nowhere else)")] if result.salt else []),
        *(("note", note) for note in result.notes),
    ])  # fmt: skip


def show_entry(record: Record, number: int) -> None:
    """Show an entry that has just come into the queue, and how it is served."""
    waiting = [entry for entry in record.queue if entry.state == "waiting"]
    entry = next(entry for entry in waiting if entry.number == number)
    _show("waiting", [
        ("record", record.folder),
        ("entry", number),
        ("rows in the model", "those that are new when it is served" if entry.kind == "admit" else f"{entry.rows:,}"),
        ("waiting in all", f"{len(waiting)} entries; what they name stays in the model until they are served"),
    ])  # fmt: skip
    show_line(f"to serve them:  pybrush unlearn record={record.folder} forget.queued=true guarantee=exact")


_AUDIT = {
    "artefacts": "files to be removed",
    "artefacts_unlinked": "files removed",
    "artefacts_left": "files left that hold it",
    "keys_destroyed": "keys destroyed",
    "searched": "searched the record for",
    "raw_ids_found_in": "ids found in",
    "equal_rows_left": "equal rows that stay",
}


def show_verification(record: Record, found: Verification, receipt: Receipt | None = None) -> None:
    """Show what was found to be true of a record, and of which request a receipt is."""
    matching = "fit the graph" if found.depth == "manifests" else "match their manifests"
    _show("clean" if found.is_clean else "not finished", [
        ("record", record.folder),
        ("depth", found.depth),
        ("stages", f"{found.stages} {matching}"),
        *([("of these not opened", f"{found.unopened}: the key ring is not here")] if found.unopened else []),
        ("stages to be built", len(found.missing)),
        *_replaced(len(found.replaced), found.releases, len(found.secrets)),
        ("rows", f"{found.rows:,}"),
        ("events", f"{found.events} in an unbroken chain"),
        ("unfinished requests", _listed(found.pending)),
        ("waiting in the queue", _listed(found.queued)),
        ("stages to be collected", len(found.unwanted)),
        ("files of user code", found.artefacts),
        *([("receipt", f"of request {receipt.request}, {receipt.state}: {receipt.rows:,} rows, accepted "
                       f"{receipt.accepted}, sealed {receipt.sealed}")] if receipt else []),
        ("not looked at", _listed(found.not_looked_at)),
    ])  # fmt: skip


def show_replay(found: Replay) -> None:
    """Show what came of training stages again."""
    allowed = found.tolerance
    _show("does not replay" if found.outcome == "mismatch" else "replayed", [
        ("stages", f"{len(found.stages)} of {found.of} trained again, each from its parent's stored state"),
        ("tolerance of a tensor", f"{allowed.absolute:g} + {allowed.relative:g} x its largest number"),
        *(row for stage in found.stages for row in _stage_rows(stage)),
    ])  # fmt: skip


def _stage_rows(stage: StageReplay) -> Rows:
    yield f"shard {stage.shard}, slice {stage.slice}", f"{stage.outcome}; {stage.rows:,} rows, {stage.seconds:.1f} s"
    for group in stage.groups:
        if group.differing:
            far = f"by up to {group.absolute:.1e}, {group.relative:.1e} of the largest number"
            yield "", f"{group.name}: {group.differing} of {group.tensors} tensors differ, {far}"
    if stage.places:
        yield "", f"differs where no tolerance holds: {', '.join(stage.places)}"
    yield from (("but for", difference) for difference in stage.environment)
    if stage.environment and stage.outcome == "mismatch":
        yield "", "rounding of another environment grows with training: replay under the recorded one to be sure"


def show_info(found: RecordInfo) -> None:
    """Show what a record holds."""
    disk, artefacts, marks = found.disk, found.artefacts, found.suppressions
    states = [f"{count} {state}" for state, count in found.request_states.items()]
    _show("record", [
        ("record", found.folder),
        ("made", f"{found.made} by the adapter {found.adapter}"),
        ("secret key", "found" if found.has_key else "not found here; requests need it"),
        *([("key ring", "found" if found.has_key_ring else "not found here; its stages cannot be read without it")]
          if found.is_encrypted else []),
        ("rows", f"{found.rows:,}; {found.samples:,} different samples"),
        ("people", f"{found.subjects:,}" if found.subjects else "none named"),
        ("shards x slices", f"{found.shards} x {found.slices}, of a fit of {found.epochs} epochs"),
        ("rows of a shard", f"{found.fewest_rows:,} to {found.most_rows:,}"),
        ("stages built", f"{found.stages_built} of {found.stages_wanted}"),
        *_replaced(found.stages_replaced, len(found.releases), sum(held.has_secret for held in found.releases)),
        *((f"shard {each.shard}", _origin(each)) for each in found.releases),
        ("constituents", f"{len(found.constituents)} of {found.shards} shards"),
        ("on disk", f"{_bytes(disk.everything)}; stages {_bytes(disk.stages)}, initial state {_bytes(disk.initial)}, "
                    f"ledger {_bytes(disk.ledger)}"),
        ("files of user code", f"{artefacts.count}, {_bytes(artefacts.bytes)}; {artefacts.absent} no longer exist"),
        *([("of these left by a request", artefacts.left)] if artefacts.left else []),
        ("marks of the forgotten", f"{marks.count:,}" + (f", the oldest of {marks.oldest}" if marks.oldest else "")),
        ("requests", ", ".join(states) or "none"),
        *(row for request in found.requests for row in _request_rows(found.folder, request)),
        *_queue_rows(found),
    ])  # fmt: skip


def _replaced(stages: int, states: int, secrets: int) -> Rows:
    """Return rows on approximate releases, none where there are none."""
    if states:
        yield "states of releases", f"{states}, in place of {stages} stages"
    if secrets:
        yield "secret states", f"{secrets}; nobody but the owner of the record may read them"


def _origin(state: HeldRelease) -> str:
    return f"{state.guarantee}, by request {state.request}: {state.method}"


def _request_rows(folder: str, request: HeldRequest) -> Rows:
    times = {"accepted": request.accepted, "committed": request.committed, "sealed": request.sealed}
    told = ", ".join(f"{name} {time}" for name, time in times.items() if time is not None)
    age = "" if request.days is None else f", {request.days} days old"
    yield f"request {request.number}", f"{request.state}{age}; {request.method} of {request.rows:,} rows; {told}"
    ways = {
        "unlearn": "finish it: mend the cause and call unlearn again, which finishes it first",
        "cancel": f"or withdraw it: Record.open({folder!r}).cancel({request.number})",
    }
    yield from (("", ways[way]) for way in request.ways_out)


def _queue_rows(found: RecordInfo) -> Rows:
    """Tell of the entries that are not served; the others stand behind their requests."""
    open_entries = [entry for entry in found.queue if entry.days is not None]
    yield "queue", f"{len(open_entries)} of {len(found.queue)} entries are not served" if found.queue else "empty"
    for entry in open_entries:
        what = "new rows" if entry.kind == "admit" else f"{entry.kind}, {entry.rows:,} rows"
        where = "waits" if entry.request is None else f"is taken by request {entry.request}"
        yield f"entry {entry.number}", f"{where}, {entry.days} days old; {what}; since {entry.enqueued}"
    if any(entry.request is None for entry in open_entries):
        yield "", "serve them: unlearn(queued=True)"
        yield "", f"or take one out: Record.open({found.folder!r}).withdraw(ENTRY)"


def show_line(text: str) -> None:
    """Show one line, whole."""
    _console().print(text, soft_wrap=True)


def _show_prices(sizes: Sizes, prices: Iterable[Price], training_share: float, disk: Rows) -> None:
    from rich.table import Table

    ends, each = forecast.saving_ends(sizes.shards), epochs_per_slice(sizes.epochs, sizes.slices)
    note = f"{ends} samples or more in one request (3 a shard) rebuild practically everything"
    if sizes.shards * sizes.slices == 1:
        note = "with one shard and one slice every request is a full retrain"
    _show("planned", [
        ("samples", f"{sizes.samples:,}"),
        ("shards x slices", f"{sizes.shards} x {sizes.slices}, stages of {each} epochs"),
        ("row visits of training", f"{training_share:.3f} of a fit of {sizes.epochs} epochs without slices"),
        *disk,
        ("note", note),
        *([("note", _SUBJECTS)] if sizes.has_subjects else []),
    ])  # fmt: skip
    table = Table(title="expected row visits of forgetting", title_justify="left")
    for name in ("samples", *("in one request: shards hit", "of a retrain"), *("one by one: of a retrain", "in all")):
        table.add_column(name, justify="right")
    whole = sizes.samples * sizes.epochs
    for price in prices:
        together, turn = price.together, price.in_turn
        table.add_row(
            f"{price.samples:,}", f"{together.shards_hit:.2f} of {sizes.shards}",
            f"{together.visits / together.retrain_visits:.3f}", f"{turn.visits / turn.retrain_visits:.3f}",
            f"{turn.visits / whole:.3f}",
        )  # fmt: skip
    _console().print(table)


_SUBJECTS = "a person whose rows lie in one cell costs what a sample does; rows in several cells cost several rebuilds"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"


def _guaranteed(result: UnlearnResult) -> Rows:
    guarantee = result.guarantee
    yield "guarantee", type(guarantee).__name__
    if isinstance(guarantee, Exact):
        yield "same bits as", guarantee.reference
        yield from (("but for", difference) for difference in guarantee.differences)
        yield from _on_trust(guarantee)
    elif isinstance(guarantee, Certified):
        yield "epsilon, delta", f"{guarantee.epsilon:g} nats, {guarantee.delta:g}; {guarantee.scope}"
        if guarantee.composed is not None:
            yield "all releases together", "{:g} nats, {:g}".format(*guarantee.composed)
        yield "against", guarantee.reference
        yield from _on_trust(guarantee)
    else:
        yield from (("found", finding) for finding in guarantee.findings)
        yield from (("not shown", limitation) for limitation in guarantee.limitations)


def _on_trust(guarantee: Exact | Certified) -> Rows:
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
