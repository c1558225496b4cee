"""Making a record: key, initial state, plan and samples, written once by whoever comes first."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pybrush.errors import ConfigurationError
from pybrush.names import Namer
from pybrush.plan.cost import epochs_per_slice
from pybrush.plan.graph import FEWEST_ROWS, stage_graph
from pybrush.plan.placement import positive
from pybrush.record import states
from pybrush.record.cipher import ALGORITHM, check_installed
from pybrush.record.files import make_folder, move, remove_folder, sync_folder
from pybrush.record.fingerprint import plain, semantic_digest
from pybrush.record.keyring import make_ring
from pybrush.record.ledger import Ledger
from pybrush.record.locks import coordinator_lock
from pybrush.record.plan import Naming, OrderKind, RecordPlan, write_plan
from pybrush.record.record import Record
from pybrush.record.samples import Samples, record_roster, write_samples
from pybrush.record.secret import KeySource, find_or_draw_key, keep_key
from pybrush.record.store import Manifest, StageStore
from pybrush.request import Roster

FOLDERS = ("stages", "tmp", "pending", "releases", "quarantine", "evidence")


@dataclass(frozen=True)
class PlanWish:
    """What a fit asks of a record; None means the record's, or the default where there is none yet.

    Attributes:
        shards: S. slices: R.
        epochs: the epochs e of the user's training.
        seed: 0 <= seed < 2^32.
        order: whether the loader shuffles.
        naming: how samples get their ids.
        contents: whether content digests are kept.
        adapter: the adapter's name.
        key: the secret key's source.
        adapter_format: version of the layout of the adapter's states.
        settings: what the adapter notes in the record besides, plain JSON; not part of the fingerprint.
        encrypt: whether each stage is encrypted under a key of its own.
    """

    shards: int | None
    slices: int | None
    epochs: int
    seed: int | None
    order: OrderKind
    naming: Naming
    contents: Literal["digest", "off"]
    adapter: str
    key: KeySource = None
    adapter_format: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    encrypt: bool | None = None

    def __post_init__(self) -> None:
        check_encrypt(self.encrypt)
        for name in ("shards", "slices", "epochs"):
            value = getattr(self, name)
            if value is not None:
                positive(name, value)
        if self.seed is not None and not (type(self.seed) is int and 0 <= self.seed < 2**32):
            raise ConfigurationError(f"seed must be an integer of at least 0 and below 2^32; got {self.seed!r}.")
        if self.contents == "off" and self.naming == "content":
            raise ConfigurationError("without content digests rows cannot be named by content; give them ids.")


def check_encrypt(encrypt: bool | None) -> None:
    """Check the wish for encrypted stages before anything is made.

    Raises:
        ConfigurationError: where it is no truth value.
        MissingExtraError: where what encrypts is not installed.
    """
    if encrypt is not None and type(encrypt) is not bool:
        raise ConfigurationError(f"encrypt must be True, False or None (the record's); got {encrypt!r}.")
    if encrypt:
        check_installed()


def plan_values(wish: PlanWish, key_id: str, recorded: RecordPlan | None) -> dict[str, Any]:
    """Return the part of the semantic fingerprint that the plan itself makes up."""
    shards = wish.shards or (recorded.shards if recorded else 1)
    slices = wish.slices or (recorded.slices if recorded else 1)
    seed = wish.seed if wish.seed is not None else (recorded.seed if recorded else secrets.randbelow(2**32))
    return {
        "shards": shards,
        "slices": slices,
        "epochs_per_slice": epochs_per_slice(wish.epochs, slices),
        "seed": seed,
        "key_id": key_id,
        "order": wish.order,
        "naming": wish.naming,
        "contents": wish.contents,
    }


def create(
    folder: Path,
    wish: PlanWish,
    semantic_of: Callable[[Namer], Mapping[str, Any]],
    state: Any,
    roster_of: Callable[[Namer], Roster],
) -> Record:
    """Make the record in a folder, or open it where another process has just made it.

    Args:
        folder: the record's folder; made if it is not there.
        wish: what the fit asks for.
        semantic_of: the learner's fingerprint under the key that the record gets, without the plan's part.
        state: the initial state of the model, a typed tree.
        roster_of: names the rows of the data set under the key that the record gets.
    """
    # Before anything is written, so that what is refused leaves nothing, and not under the lock: reading all
    # contents may take longer than other processes wait for it.
    drawn = find_or_draw_key(folder, wish.key)
    outline = _outline(wish, semantic_of, state, roster_of, Namer(drawn))
    make_folder(folder)
    sync_folder(folder.parent)
    with coordinator_lock(folder):
        kept = keep_key(folder, wish.key, drawn)
    if kept != drawn:  # another process was faster, and its key gives other names
        outline = _outline(wish, semantic_of, state, roster_of, Namer(kept))
    samples = None
    with coordinator_lock(folder):
        if not _is_planned(folder):
            _write(folder, state, outline)
            samples = outline.samples
    record = Record.open(folder, wish.key)
    record.samples_are(samples)
    return record


@dataclass(frozen=True)
class _Outline:
    """What a new record will say, under one key."""

    plan: RecordPlan
    samples: Samples
    roster: Roster
    encrypts: bool


def _outline(
    wish: PlanWish, semantic_of: Callable[[Namer], Mapping[str, Any]], state: Any,
    roster_of: Callable[[Namer], Roster], namer: Namer,
) -> _Outline:  # fmt: skip
    """Name the rows and work out the plan, or refuse; nothing is written."""
    roster = roster_of(namer)
    whole = plain({**semantic_of(namer), "plan": plan_values(wish, namer.key_id, None)})
    plan = _plan(wish, whole, states.init_digest(state))
    samples = record_roster(roster, plan.shards, plan.slices, plan.order == "sequential", np.ones(len(roster), bool))
    _check_trainable(plan, samples)
    return _Outline(plan, samples, roster, bool(wish.encrypt))


def _is_planned(folder: Path) -> bool:
    path = folder / "ledger.sqlite"
    if not path.is_file():
        return False
    with closing(Ledger(path)) as ledger:
        return bool(ledger.plan())


def _write(folder: Path, state: Any, outline: _Outline) -> None:
    """Write everything; the plan comes last, so that a crash leaves a folder that is simply written again."""
    plan, samples = outline.plan, outline.samples
    for name in FOLDERS:
        make_folder(folder / name)
    if outline.encrypts:
        plan = replace(plan, encryption={"algorithm": ALGORITHM, "ring": make_ring(folder).ring})
    store = StageStore(folder)
    remove_folder(store.initial)
    aside = store.write_aside(state, Manifest("initial"))
    try:
        move(aside, store.initial)
    finally:
        store.let_go(aside)
    if not (folder / "ledger.sqlite").is_file():
        Ledger.create(folder / "ledger.sqlite")
    with closing(Ledger(folder / "ledger.sqlite")) as ledger, ledger.writing("plan"):
        write_plan(ledger, plan)
        write_samples(ledger, samples, outline.roster)
        write_cells(ledger, plan, samples)
        ledger.append_event("planned", rows=samples.rows, shards=plan.shards, slices=plan.slices)


def _check_trainable(plan: RecordPlan, samples: Samples) -> None:
    """Refuse a plan under which no stage would be trained: the model would stay as it was, without a word."""
    largest = int(samples.cell_rows(plan.shards, plan.slices).sum(axis=1).max())
    if largest < FEWEST_ROWS:
        raise ConfigurationError(
            f"a shard is trained on at least {FEWEST_ROWS} rows; {samples.rows} rows in {plan.shards} shards leave at "
            f"most {largest} in one. Pass more rows or fewer shards."
        )


def write_cells(ledger: Ledger, plan: RecordPlan, samples: Samples) -> None:
    """Write rows and digest of every cell that has rows, and want its stages, inside a transaction."""
    counts = samples.cell_rows(plan.shards, plan.slices)
    digests = samples.digests([(int(s), int(r)) for s, r in np.argwhere(counts > 0)])
    ledger.change("DELETE FROM cells")
    ledger.change_many(
        "INSERT INTO cells VALUES (?, ?, ?, ?)",
        ((s, r, int(counts[s, r]), digest) for (s, r), digest in digests.items()),
    )
    ledger.set_wanted(stage.key for stage in stage_graph(counts, digests, plan.roots))


def _plan(wish: PlanWish, semantic: Mapping[str, Any], initial_digest: str) -> RecordPlan:
    own = semantic["plan"]
    return RecordPlan(
        shards=own["shards"],
        slices=own["slices"],
        epochs=wish.epochs,
        epochs_per_slice=own["epochs_per_slice"],
        seed=own["seed"],
        key_id=own["key_id"],
        order=wish.order,
        naming=wish.naming,
        contents=wish.contents,
        initial_digest=initial_digest,
        semantic=semantic,
        semantic_digest=semantic_digest(semantic).hex(),
        adapter=wish.adapter,
        adapter_format=wish.adapter_format,
        settings=wish.settings,
    )
