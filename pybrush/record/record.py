"""A record: the folder in which a training run leaves what later requests need.

`Record.open` opens one that exists; `create` writes a new one under its lock. Everything else (building,
requests, collection, verification) works on an opened record. The layout is docs/record_format.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pybrush.errors import CorruptRecordError, RecordError, SecretKeyError
from pybrush.names import Namer
from pybrush.plan.graph import Stage, constituents, stage_graph
from pybrush.record.declarations import declare
from pybrush.record.files import erase
from pybrush.record.keyring import KeyRing, ring_path
from pybrush.record.ledger import Ledger
from pybrush.record.locks import coordinator_lock
from pybrush.record.plan import RecordPlan
from pybrush.record.requests import RequestInfo, read_requests
from pybrush.record.samples import Samples, read_samples
from pybrush.record.secret import KeySource, find_key, lost_key
from pybrush.record.store import StageStore

if TYPE_CHECKING:
    from pybrush.record.info import RecordInfo
    from pybrush.record.queue import QueueEntry
    from pybrush.record.receipt import Receipt
    from pybrush.record.verify import Depth, Verification


class Record:
    """An opened record.

    Example:
        >>> Record.open("records/faces").verify()  # doctest: +SKIP
    """

    def __init__(self, folder: Path, ledger: Ledger, key: bytes | None) -> None:
        self.folder, self.ledger = folder, ledger
        self.namer = Namer(key) if key is not None else None
        self._samples: tuple[int, Samples] | None = None

    @classmethod
    def open(cls, path: str | Path, key: KeySource = None) -> Record:
        """Open the record in a folder; without its key, what needs no names works.

        Args:
            path: the record's folder.
            key: 32 bytes or a callable; None: the environment's, or the file beside the record.

        Raises:
            RecordError: where there is no record.
            SecretKeyError: where the key is another record's.
            CorruptRecordError: for another format version or an unreadable ledger.
        """
        folder = Path(path)
        if not (folder / "ledger.sqlite").is_file():
            raise RecordError(f"there is no record in {folder}; train with SISA(record={str(folder)!r}) to make one.")
        secret = find_key(folder, key)
        record = cls(folder, Ledger(folder / "ledger.sqlite"), secret)
        try:
            record._check_opened()
        except BaseException:
            record.close()
            raise
        return record

    def _check_opened(self) -> None:
        if not self.ledger.plan():
            raise RecordError(f"the record in {self.folder} was not finished when it was made; run the training again.")
        if self.namer is not None and self.namer.key_id != self.plan.key_id:
            raise SecretKeyError(f"the key given for {self.folder} is another record's; pass the one it was made with.")

    def close(self) -> None:
        """Close the ledger's file."""
        self.ledger.close()

    @cached_property
    def plan(self) -> RecordPlan:
        """What was fixed at the first fit."""
        try:
            return RecordPlan(**self.ledger.plan())
        except TypeError as error:
            raise CorruptRecordError(f"the plan in {self.ledger.path} is not complete ({error}).") from error

    @cached_property
    def store(self) -> StageStore:
        """The stages on disk."""
        held = self.plan.encryption
        ring = None if held is None else KeyRing(ring_path(self.folder), held["ring"])
        return StageStore(self.folder, ring)

    @property
    def names(self) -> Namer:
        """The names under the record's key.

        Raises:
            SecretKeyError: where the key is lost.
        """
        if self.namer is None:
            raise lost_key(self.folder)
        return self.namer

    def samples(self) -> Samples:
        """Return all recorded samples; they are read anew only when the ledger has changed."""
        version = self.ledger.version_of_others()
        if self._samples is None or self._samples[0] != version:
            self._samples = version, read_samples(self.ledger)
        return self._samples[1]

    def samples_are(self, samples: Samples | None) -> None:
        """Take note of what the samples are after a change of this process; None: read them when asked."""
        self._samples = None if samples is None else (self.ledger.version_of_others(), samples)

    def graph(self) -> tuple[Stage, ...]:
        """Return the stages that the samples in the record call for, built or not."""
        rows = np.zeros((self.plan.shards, self.plan.slices), dtype=np.int64)
        digests = {}
        for shard, cell, count, digest in self.ledger.rows("SELECT shard, slice, rows, digest FROM cells"):
            rows[shard, cell], digests[shard, cell] = count, digest
        return stage_graph(rows, digests, self.plan.roots)

    def digests(self) -> list[tuple[tuple[int, int], bytes]]:
        """Return the recorded digest of each cell that has rows."""
        return [((s, r), digest) for s, r, digest in self.ledger.rows("SELECT shard, slice, digest FROM cells")]

    def graph_of(self, samples: Samples, digests: Mapping[tuple[int, int], bytes]) -> tuple[Stage, ...]:
        """Return the stages that some samples call for, given the digests of their cells."""
        return stage_graph(samples.cell_rows(self.plan.shards, self.plan.slices), digests, self.plan.roots)

    def stand_ins(self) -> dict[int, str]:
        """Return shard -> key of the release's state that stands for its last stage, where one does.

        An approximate method leaves such a state; it goes when the shard is rebuilt.
        """
        rows = self.ledger.rows("SELECT constituents FROM releases")
        held = json.loads(rows[0][0]) if rows else {}
        return {int(shard): state["key"] for shard, state in held.items() if state.get("folder") == "releases"}

    def constituents(self) -> dict[int, str]:
        """Return the key of what serves each trained shard: its last stage, or a release's state in its place."""
        return {shard: stage.key for shard, stage in constituents(self.graph()).items()} | self.stand_ins()

    @property
    def requests(self) -> tuple[RequestInfo, ...]:
        """All requests, in the order in which they came.

        A sealed one counts as collected until the file that names its rows is unlinked.
        """
        return read_requests(self.ledger, self.folder)

    def register_artefact(self, path: str | Path, stage: str, kind: str) -> None:
        """Note a file that user code is about to write and that holds the state of a stage.

        A file of another stage at the same path is removed first: it is about to be replaced, and
        registered under the new stage it would outlive a request that takes the old one.
        """
        place, home = Path(path).resolve(), self.folder.resolve()
        if home.is_relative_to(place):
            raise RecordError(f"{place} holds the record {self.folder}, so it cannot be collected with a stage.")
        # Inside the record a path is kept relative, so that a record that was moved still finds its files.
        stored = str(place.relative_to(home) if place.is_relative_to(home) else place)
        with coordinator_lock(self.folder):
            held = self.ledger.rows("SELECT stage FROM artefacts WHERE path = ?", (stored,))
            if held and held[0][0] != stage:
                erase(place)
            with self.ledger.writing("artefact"):
                self.ledger.change(
                    "INSERT OR REPLACE INTO artefacts (path, stage, kind) VALUES (?, ?, ?)", (stored, stage, kind)
                )

    def artefacts(self) -> dict[str, str]:
        """Return the path of each registered artefact and the key of the stage whose state it holds."""
        home = self.folder.resolve()
        rows = self.ledger.rows("SELECT path, stage FROM artefacts ORDER BY path")
        return {str(home / path): stage for path, stage in rows}

    def settle(self) -> tuple[str, ...]:
        """Remove the files that requests with purge="list" left, after which those requests are complete.

        Returns:
            The paths of what was there.
        """
        from pybrush.record.artefacts import settle

        with coordinator_lock(self.folder):
            return settle(self)

    def info(self) -> RecordInfo:
        """Return what the record holds, in numbers: rows, stages, requests, bytes. It reads no sample and needs no key.

        Raises:
            CorruptRecordError: where the ledger is damaged.
        """
        from pybrush.record.info import info

        return info(self)

    def declare(self, name: str, statement: str) -> None:
        """Give your word on an assumption; every later guarantee shows it, until it is declared again.

        Args:
            name: an assumption of the guarantee, such as "initial-state", or a name of your own.
            statement: why it holds: one line of at most 500 characters. Name no person in it: results,
                reports and the ledger repeat it.

        Raises:
            ConfigurationError: for an empty, long or unprintable text, or an assumption that is proved.
        """
        with coordinator_lock(self.folder):
            declare(self.ledger, name, statement)

    def verify(self, depth: Depth = "digests") -> Verification:
        """Check everything that must be true of the record.

        Args:
            depth: "manifests" looks at ledger, graph and manifests and reads no state; "digests" reads every byte.
                The third depth, replay, needs model and data: see `pybrush.replay`.

        Raises:
            ConfigurationError: for another depth.
            CorruptRecordError: at the first defect.
            ErasureError: where something remains that a request should have taken.
        """
        from pybrush.record.verify import verify

        return verify(self, depth)

    def check_receipt(self, path: str | Path) -> Receipt:
        """Check what `result.write_receipt` wrote against the chain of events; tell of which request it is.

        Raises:
            RecordError: where the file is no receipt, or opens no request of this record.
            CorruptRecordError: where the chain is broken.
        """
        from pybrush.record.receipt import check_receipt

        return check_receipt(self, Path(path))

    def enqueue(
        self, ids: Sequence[Any] | None = None, subjects: Sequence[Any] | None = None, before: Any = None
    ) -> int:
        """Note samples that are to be forgotten later, together with others, by `unlearn(queued=True)`.

        It needs the key and neither model nor data. Until the entry is served, its samples stay in the model.

        Args:
            ids: ids of samples, as given in training.
            subjects: persons of whom everything is to be forgotten, rows that join later included.
            before: a date; every row whose day is earlier: the day that was given for it, else that on which it was
                recorded.

        Returns:
            The entry's number, for `withdraw`.

        Raises:
            UnknownSamplesError: for ids or subjects that the record does not hold and never held, with their count.
            ForgetError: for a list that names nothing, rows that were all forgotten, and ids in a record without.
            SecretKeyError: where the key is lost.
        """
        from pybrush.record.queue import enqueue

        return enqueue(self, ids, subjects, before)

    def amend(self, ids: Sequence[Any]) -> int:
        """Note ids whose rows changed in the data set, labels fixed say; `unlearn(queued=True)` reads them anew.

        Returns:
            The entry's number, for `withdraw`.

        Raises:
            UnknownSamplesError: for ids that the record does not hold and never held, with their count.
            UnsupportedError: where the record knows rows by content alone, or keeps no content digests.
        """
        from pybrush.record.queue import amend

        return amend(self, ids)

    def admit(self) -> int:
        """Note that rows of the data set which are new to the record may join when `unlearn(queued=True)` is called.

        Which rows these are shows then: those that are not recorded and were never forgotten.

        Returns:
            The entry's number, for `withdraw`.
        """
        from pybrush.record.queue import admit

        return admit(self)

    def withdraw(self, entry: int) -> None:
        """Take a waiting entry out of the queue, unserved; whom it named stays in the model.

        Raises:
            RecordError: where it does not wait.
        """
        from pybrush.record.queue import withdraw

        withdraw(self, entry)

    @property
    def queue(self) -> tuple[QueueEntry, ...]:
        """All entries of the queue, those that were served and withdrawn too, in the order in which they came."""
        from pybrush.record.queue import entries_of

        return entries_of(self.ledger)

    def cancel(self, request: int) -> None:
        """Withdraw a pending request; the stages built for it are removed, the model stays as it was.

        Raises:
            RecordError: where the request is not pending.
            LockedError: where another process serves it.
        """
        from pybrush.record.transaction import cancel

        cancel(self, request)

    def aggregate(self, module: Any) -> Any:
        """Return one model that predicts with all constituents, built in the shape of `module`.

        Args:
            module: the model that the record was trained with; it is not changed.

        Raises:
            UnsupportedError: where no installed adapter knows the model.
        """
        from pybrush.adapters import adapter_of

        return adapter_of(module).aggregate(self, module)

    def export(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model to deploy into a folder: weights and a description, nothing else of the record.

        Each file of weights is registered with its stage, like a checkpoint: a later request that replaces the stage
        removes it. Copies of the folder are out of reach.

        Args:
            folder: a new or empty folder outside of the record.
            overwrite: replace an earlier export in the folder; other files in it stay.

        Returns:
            The folder.

        Raises:
            ConfigurationError: for a folder that is not empty, or lies in the record.
            RecordError: where a constituent is not built yet.
            LockedError: where another process serves a request.
            MissingExtraError: where the framework is not installed.
        """
        from pybrush.adapters import adapter_named

        written: Path = adapter_named(self.plan.adapter).export(self, folder, overwrite=overwrite)
        return written
