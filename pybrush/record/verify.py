"""What must be true of a record, and whether it is: manifest by manifest, digest by digest."""

from __future__ import annotations

from dataclasses import dataclass

from pybrush.errors import CorruptRecordError
from pybrush.record.check_ledger import check_cells, check_declarations, check_history, check_plan
from pybrush.record.check_leftovers import check_artefacts, check_open_request
from pybrush.record.check_releases import check_releases, secrets_of
from pybrush.record.check_stages import check_initial, check_stages
from pybrush.record.ledger import check_events, days_since
from pybrush.record.record import Record
from pybrush.record.samples import read_samples
from pybrush.record.transaction import unfinished


@dataclass(frozen=True)
class Verification:
    """What was found to be true.

    Attributes:
        stages: stages whose files match their manifests.
        missing: stages that are still to be built: the fit or a request is not finished.
        rows: recorded rows, copies counted.
        events: events in the unbroken chain.
        pending: unfinished requests, "number: state, n days old".
        unwanted: stages and states of releases on disk that the plan does not want; the next collection takes them.
        artefacts: registered files of user code that exist.
        replaced: stages without a state for which a state of an approximate release stands, so they are not missing.
        releases: states of approximate releases whose files match their manifests.
        secrets: keys of such states beside which a secret one lies.
    """

    stages: int
    missing: tuple[str, ...]
    rows: int
    events: int
    pending: tuple[str, ...]
    unwanted: tuple[str, ...]
    artefacts: int
    replaced: tuple[str, ...] = ()
    releases: int = 0
    secrets: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether nothing is missing, pending or unwanted."""
        return not (self.missing or self.pending or self.unwanted)


def verify(record: Record) -> Verification:
    """Check a record (see `Record.verify`)."""
    events = check_events(record.ledger)
    check_history(record)
    check_declarations(record)
    check_plan(record)
    check_initial(record)
    stages = record.graph()
    check_cells(record)
    lacking, held = check_stages(record, stages), record.stand_ins()
    check_releases(record, stages)
    replaced = tuple(stage.key for stage in stages if stage.key in lacking and stage.shard in held)
    missing = tuple(key for key in lacking if key not in replaced)
    check_open_request(record)
    pending = tuple(
        f"{request.number}: {request.state}, {days_since(request.accepted)} days old" for request in unfinished(record)
    )
    wanted = record.ledger.wanted()
    if not pending and wanted != {stage.key for stage in stages} | set(held.values()):
        raise CorruptRecordError(f"the stages that {record.ledger.path} wants are not those of its samples.")
    return Verification(
        len(stages) - len(lacking),
        missing,
        read_samples(record.ledger).rows,
        events,
        pending,
        tuple(sorted((record.store.keys() | record.store.release_keys()) - wanted)),
        check_artefacts(record, wanted),
        replaced,
        len(held),
        secrets_of(record),
    )
