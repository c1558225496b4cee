"""The orchestrator: fit and unlearn as transactions on a record, the same for every framework.

`fit` builds every stage that has no state. `unlearn` strikes rows out, amends and admits rows where asked, builds
what is missing then, commits, and collects what became unreachable. A crash anywhere is mended by calling again:
the request that was accepted is finished first. Guide: docs/record_format.md, "Requests".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pybrush.build import Sources, build, check_rows, due_stages, holdings_of, missing_stages
from pybrush.chain import is_met
from pybrush.edit import coming_states, make_states
from pybrush.errors import ContentError, FingerprintError, ForgetError, IdError, RecordError, UnsupportedError
from pybrush.guarantee import as_plain
from pybrush.learner import Learner
from pybrush.method import Terms
from pybrush.names import Namer
from pybrush.outcome import (
    cost_of,
    foretold,
    full_retrain_note,
    inexact_note,
    left_notes,
    notes_on,
    rebuilt,
    trained_again_note,
    unchanged,
)
from pybrush.plan.graph import Stage
from pybrush.record.artefacts import set_purge
from pybrush.record.check_ledger import check_plan
from pybrush.record.check_needed import check_needed
from pybrush.record.check_releases import check_serving
from pybrush.record.collect import collect
from pybrush.record.create import PlanWish, create, plan_values
from pybrush.record.fingerprint import check_same, plain
from pybrush.record.locks import coordinator_lock, request_lock
from pybrush.record.queue import close_unneeded, drawn, is_served_by, waiting_entries, waiting_note
from pybrush.record.record import Record
from pybrush.record.releases import FIT, is_rebuild, short_name, write_release
from pybrush.record.resolve import Wish, resolve
from pybrush.record.samples import hold
from pybrush.record.store import Manifest
from pybrush.record.transaction import (
    OpenRequest,
    accept,
    commit,
    open_request,
    tidy,
    unfinished,
)
from pybrush.request import Roster
from pybrush.result import UnlearnCost, UnlearnResult
from pybrush.standing import (
    current_guarantee,
    guarantee_of,
    say_replaced,
    terms_to_finish,
)
from pybrush.work import Work, intended, work_of

_log = logging.getLogger(__name__)

DEFAULT_TERMS = Terms()
"""What a request hits is rebuilt."""


@dataclass(frozen=True)
class Fitted:
    """What a fit left.

    Attributes:
        record: the opened record.
        built: manifests of the stages that this call trained.
        constituents: shard -> key of its last stage.
    """

    record: Record
    built: tuple[Manifest, ...]
    constituents: dict[int, str]


def fit(
    folder: str | Path, wish: PlanWish, learner: Learner, data: Any, roster_of: Callable[[Namer], Roster]
) -> Fitted:
    """Build every stage of a record that has no state, and load the last constituent into the model.

    Args:
        folder: the record's folder; a record is made if there is none.
        wish: shards, slices, epochs and the like; None means the record's.
        learner: the model, in its initial state where the record is made now.
        data: what the learner trains on.
        roster_of: names the rows of `data` under the record's key.

    Raises:
        FingerprintError: where model, data or settings differ from the record's.
        MissingRowsError: where a stage must be trained and its rows are gone.
    """
    roster_under = _read_once(roster_of)
    record = open_or_create(Path(folder), wish, learner, roster_under)
    check_fingerprint(record, wish, learner)
    sources = Sources(learner, data, roster_under(record.names))
    tidy(record)
    if unfinished(record):  # else no lock: any number of processes may build a first fit together
        with request_lock(record.folder):
            _finish_open(record, sources)
    for note in waiting_note(record.ledger):
        _log.warning("%s", note)
    samples = record.samples()
    stages = record.graph()
    held = record.stand_ins()
    todo = due_stages(record, stages, held)
    say_replaced(record, stages)
    holdings = holdings_of(record, samples, sources.roster)
    check_needed(record, samples, stages, todo)
    check_serving(record, held)
    check_rows(record, samples, holdings, sources, todo)
    built = learner.session(lambda: build(record, sources, samples, holdings, todo))
    _release_fit(record, stages)
    if not todo:
        _log.info("%s is complete; nothing was left to train, its constituents were loaded", record.folder)
    load_last(record, learner)
    return Fitted(record, tuple(built), record.constituents())


def open_or_create(folder: Path, wish: PlanWish, learner: Learner, roster_of: Callable[[Namer], Roster]) -> Record:
    """Open the record in a folder, or make it from the model's present state."""
    if (folder / "ledger.sqlite").is_file():
        try:
            return Record.open(folder, wish.key)
        except RecordError as error:
            if type(error) is not RecordError:  # only a record that was never finished is made again
                raise
    return create(folder, wish, learner.semantic, learner.read_state(), roster_of)


def check_fingerprint(record: Record, wish: PlanWish, learner: Learner) -> None:
    """Compare what is to be trained with what the record was made with.

    Raises:
        FingerprintError: naming every field that differs.
    """
    check_plan(record)
    plan = record.plan
    check_adapter(record, wish.adapter, wish.adapter_format)
    if wish.encrypt is not None and wish.encrypt != (plan.encryption is not None):
        raise FingerprintError(
            f"the stages of {record.folder} are {'not ' if wish.encrypt else ''}encrypted, which its first fit fixed. "
            "Leave encrypt= out, or start a new record in another folder."
        )
    now = {**learner.semantic(record.names), "plan": plan_values(wish, record.names.key_id, plan)}
    check_same(record.plan.semantic, plain(now), record.folder)


def check_adapter(record: Record, adapter: str, adapter_format: int) -> None:
    """Refuse a record that another adapter made, or another version of this one.

    Raises:
        FingerprintError: naming both.
    """
    plan = record.plan
    if (plan.adapter, plan.adapter_format) != (adapter, adapter_format):
        raise FingerprintError(
            f"{record.folder} was made by the adapter {plan.adapter} in format {plan.adapter_format}; this is "
            f"{adapter} in format {adapter_format}. Use the one that made it."
        )


def unlearn(
    record: Record, sources: Sources, wish: Wish | None, *, aggregate: Callable[[Record], Any],
    terms: Terms = DEFAULT_TERMS, dry_run: bool = False,
) -> UnlearnResult:  # fmt: skip
    """Do what a wish asks, by rebuilding the stages that it hits or by an approximate method.

    What was forgotten before, and under as strong a guarantee as is asked for now, is not forgotten again; under a
    weaker one, what falls short is rebuilt.

    Args:
        record: the opened record, its fingerprint already compared.
        sources: learner, data and names of its rows.
        wish: what to forget, to amend and to admit; None: nothing more, for terms that ask more than the record
            guarantees.
        aggregate: makes the model to hand out, after the constituent was loaded.
        terms: by which method, and under which guarantee.
        dry_run: only say what would be done.

    Raises:
        ForgetError: where nothing can be done as asked; nothing was touched.
        PyBrushError: from training; the model is as before and the request stays pending.
    """
    purge = "delete" if wish is None else wish.purge
    with request_lock(record.folder):
        if dry_run:
            resolution, work = intended(record, sources, wish, terms)
            result = foretold(record, resolution, work.prospect(terms) if work else None, purge)
        else:
            tidy(record)
            result = _served(record, sources, wish, terms, aggregate)
    left = () if dry_run and wish is not None and wish.queued else waiting_note(record.ledger)
    return replace(result, notes=(*result.notes, *left))


def load_last(record: Record, learner: Learner) -> str | None:
    """Load the constituent of the highest-numbered trained shard into the model; return its key."""
    last = record.constituents()
    if not last:
        return None
    key = last[max(last)]
    learner.write_state(record.store.load(key)[0])
    return key


def _read_once(roster_of: Callable[[Namer], Roster]) -> Callable[[Namer], Roster]:
    """Return the function, made to read the data set only once under each key."""
    rosters: dict[str, Roster] = {}

    def roster_under(namer: Namer) -> Roster:
        if namer.key_id not in rosters:
            rosters[namer.key_id] = roster_of(namer)
        return rosters[namer.key_id]

    return roster_under


def _finish_open(record: Record, sources: Sources) -> None:
    waiting = open_request(record)
    if waiting is None:
        return
    if waiting.state == "pending" and not is_rebuild(waiting.method):
        raise RecordError(
            f"request {waiting.number} of {record.folder} waits for the method {short_name(waiting.method)!r}, which a "
            f"fit does not have: call unlearn with it, or with guarantee='exact', or cancel({waiting.number})."
        )
    _log.warning("request %d of %s is not finished; it is served first", waiting.number, record.folder)
    _serve(record, sources, waiting, None, lambda _: None, terms_to_finish(record, waiting, DEFAULT_TERMS))


def _served(
    record: Record, sources: Sources, wish: Wish | None, terms: Terms, aggregate: Callable[[Record], Any]
) -> UnlearnResult:
    """Finish what is open, then do what a wish asks, unless that was the same."""
    raw_ids, purge = ((), "delete") if wish is None else (wish.raw_ids, wish.purge)
    waiting = open_request(record)
    if waiting is not None:
        same = _names_same(record, sources, wish, waiting)
        if same:
            set_purge(record, waiting.number, purge)
        finishing = terms_to_finish(record, waiting, terms)
        result = _serve(record, sources, waiting, raw_ids if same else None, aggregate, finishing)
        if same and is_met(result.guarantee, terms.guarantee):
            return result
        wish = None if same else wish  # resolved again it could name one more of several copies
    resolution, work = intended(record, sources, wish, terms)
    if work is None:
        close_unneeded(record, resolution.entries)
        load_last(record, sources.learner)
        removed = record.settle() if purge == "delete" else ()
        return replace(unchanged(record, resolution, removed), model=aggregate(record))
    request = accept(
        record, work.change, work.target, resolution.entries, purge, work.standing.method, work.standing.edited
    )
    result = _serve(record, sources, request, raw_ids, aggregate, terms, work)
    audit = {**result.audit, "equal_rows_left": resolution.equal}
    return replace(result, audit=audit, notes=(*notes_on(resolution), *result.notes))


def _names_same(record: Record, sources: Sources, wish: Wish | None, waiting: OpenRequest) -> bool:
    """Whether a wish names the multiset of a request that is not finished.

    Resolved against the record as it was when that request came, so that the rerun of a request that was
    killed after its commit does not strike one more copy.
    """
    if wish is None:
        return waiting.change.is_empty
    if wish.queued:
        return is_served_by(record.ledger, waiting.number) and not waiting_entries(record.ledger)
    samples, wish = record.samples(), drawn(record, wish)
    if waiting.state == "pending":
        return resolve(record, samples, hold(samples, sources.roster), wish).change.same_request(waiting.change)
    known, rest = waiting.change, wish
    if wish.subjects is not None and wish.contents is None:  # the commit took what says which rows were theirs
        if {row.tobytes() for row in known.strikes.subjects} != {row.tobytes() for row in wish.subjects}:
            return False
        if wish.names is None and wish.amended is None and not wish.admits:
            return True
        rest = replace(wish, subjects=None)
    samples = samples.restored(known)
    try:
        found = resolve(record, samples, hold(samples, sources.roster), rest).change
    except (ForgetError, UnsupportedError, ContentError, IdError):
        return False  # after a commit only forward; what is wrong with the wish is said when that is done
    return known.same_request(found) if rest is wish else known.covers(found)


def _serve(
    record: Record, sources: Sources, request: OpenRequest, raw_ids: tuple[bytes, ...] | None,
    aggregate: Callable[[Record], Any], terms: Terms, work: Work | None = None,
) -> UnlearnResult:  # fmt: skip
    """Take a request from where it stands to sealed; `work` where it was just worked out."""
    salt = record.ledger.rows("SELECT salt FROM salts WHERE request = ?", (request.number,))
    if request.state == "pending":
        _build_and_commit(record, sources, request, terms, work)
    # Before collection, so that whatever stops that, the model in hand has forgotten.
    load_last(record, sources.learner)
    audit = collect(record, request.number, request.change.strikes, raw_ids)
    stages = record.graph()
    served = next(info for info in record.requests if info.number == request.number)
    outcome, last = served.outcome, {stage.shard for stage in stages}
    return UnlearnResult(
        model=aggregate(record),
        guarantee=current_guarantee(record, request.change),
        method=short_name(served.method),
        request=request.number,
        cost=UnlearnCost(**outcome["cost"]),
        audit=audit,
        record=record.folder,
        shards=tuple(sorted(last)),
        left_out=tuple(shard for shard in range(record.plan.shards) if shard not in last),
        forgotten=int(outcome["rows"]),
        amended=int(outcome["amended"]),
        admitted=int(outcome["admitted"]),
        entries=tuple(entry.number for entry in record.queue if entry.request == request.number),
        notes=(
            *trained_again_note(served.method),
            *inexact_note(record, stages, record.stand_ins()),
            *left_notes(audit),
        ),
        salt=salt[0][0].hex() if salt else "",
        committed=tuple(part.hex() for part in request.change.committed()) if salt else (),
    )


def _build_and_commit(
    record: Record, sources: Sources, request: OpenRequest, terms: Terms, known: Work | None
) -> None:  # fmt: skip
    samples = record.samples()
    with _as_before(record, sources.learner, request.number):
        work = known or work_of(record, sources, samples, request.change, terms)
        target, standing, change = work.target, work.standing, request.change
        changed = rebuilt(record, target, standing)
        if work.todo or work.edit:
            for note in full_retrain_note(changed, target.stages):
                _log.info("%s", note)
            sources.learner.session(lambda: _make(record, sources, request, work))
        made = coming_states(record, request.number, standing)
        held = {**standing.kept, **made}
        cost = cost_of(record, target.stages, changed, made.values())
        guarantee = as_plain(guarantee_of(record, target.stages, held, change=change))
        counts = {"rows": change.forgotten, "amended": change.amended, "admitted": change.admitted}
        cells = [[stage.shard, stage.slice] for stage in changed]
        outcome = {"cost": asdict(cost), "guarantee": guarantee, "rebuilt": cells, **counts}
        # Not always by the method that it was accepted with: a rebuild may finish what another was to do.
        commit(record, replace(request, method=standing.method), samples, target, outcome, held)


def _make(record: Record, sources: Sources, request: OpenRequest, work: Work) -> None:
    """Train stages and run the method; call where the framework can train."""
    build(record, sources, work.target.samples, work.holdings, work.todo)
    if work.edit is not None:
        make_states(record, sources, request.number, work.edit)


@contextmanager
def _as_before(record: Record, learner: Learner, number: int) -> Iterator[None]:
    """Put the model back as it was if an error ends a request before its commit.

    An interrupt may also come just after it: then the model has to forget.
    """
    before = learner.read_state()
    try:
        yield
    except BaseException as error:
        learner.write_state(before)
        if ("pending",) not in record.ledger.rows("SELECT state FROM requests WHERE number = ?", (number,)):
            load_last(record, learner)
            raise
        error.add_note(
            f"Request {number} of {record.folder} stays pending and the stages it has built are kept: mend the cause "
            f"and call unlearn again, or withdraw it with Record.open({str(record.folder)!r}).cancel({number})."
        )
        raise


def _release_fit(record: Record, stages: tuple[Stage, ...]) -> None:
    """Write the release of a finished fit, once."""
    with coordinator_lock(record.folder):
        if not record.ledger.rows("SELECT key FROM releases") and not missing_stages(record, stages):
            with record.ledger.writing("release"):
                write_release(record, None, FIT, b"", as_plain(guarantee_of(record, stages, {})), stages, {})
                record.ledger.append_event("fitted", stages=len(stages))
