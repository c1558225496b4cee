"""What a request returns: the model, the guarantee, and what it cost beside a retrain."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pybrush.errors import RecordError
from pybrush.guarantee import Guarantee


@dataclass(frozen=True)
class UnlearnCost:
    """What a request took, and what training again without the forget set would take.

    Attributes:
        stages_rebuilt: stages that were trained.
        stages: trained stages that the record has afterwards.
        visits: rows times epochs of the stages that had to be rebuilt.
        steps: optimizer steps of these stages.
        seconds: seconds spent training them.
        retrain_visits: rows times epochs of all stages, what a retrain under the same plan visits.
        retrain_seconds: the sum of the seconds measured for each stage of the record.
    """

    stages_rebuilt: int
    stages: int
    visits: int
    steps: int
    seconds: float
    retrain_visits: int
    retrain_seconds: float


@dataclass(frozen=True)
class UnlearnResult:
    """The outcome of a request.

    Attributes:
        model: what to deploy: the user's model with one constituent, else the aggregate of all.
        guarantee: Exact, Certified or Empirical.
        method: how it was done, such as "rebuild"; "none" where nothing was left to do.
        request: the request's number in the record; 0 for a dry run or where nothing was left to do.
        cost: what it took beside a retrain.
        audit: what was checked, as plain values: erased files, the byte search, equal rows that stay.
        record: the folder of the record.
        shards: trained shards that the aggregate has.
        left_out: shards with too few rows to train, left out of the aggregate.
        forgotten: rows that this request struck for good, copies counted.
        amended: rows that got another content, or other subjects, under their name.
        admitted: rows that joined, copies counted.
        entries: entries of the queue that this request served, or that had nothing left to do.
        notes: what the caller should know, one sentence each.
        salt: opens the request's commitment in the events, with `committed`; kept nowhere else, in hexadecimal.
        committed: what the commitment is of, the rows of the pending file in parts, in hexadecimal; personal data.
    """

    model: Any
    guarantee: Guarantee
    method: str
    request: int
    cost: UnlearnCost
    audit: dict[str, Any]
    record: Path
    shards: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()
    forgotten: int = 0
    amended: int = 0
    admitted: int = 0
    entries: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    salt: str = field(default="", repr=False)
    committed: tuple[str, ...] = field(default=(), repr=False)

    @property
    def is_complete(self) -> bool:
        """Whether no registered file that holds what was forgotten was left (purge="list")."""
        return not self.audit.get("artefacts_left")

    def write_receipt(self, path: str | Path) -> Path:
        """Write what shows later which rows this request forgot, readable by its owner alone.

        It names the rows by their pseudonyms, which the record itself no longer holds: keep it with the letter that
        asked, as long as you must be able to answer it, and not in the record. `record.check_receipt` reads it.

        Args:
            path: the file to write; an existing one is replaced.

        Returns:
            The path of the file.

        Raises:
            RecordError: where nothing was forgotten, or the salt was lost with a process that died.
        """
        from pybrush.report import write_private

        if not self.salt:
            raise RecordError(
                "there is no receipt of this result: it is of no request, or its salt was deleted by an earlier call "
                "that did not come back. The request is served all the same; see record.requests."
            )
        rows, *added = self.committed
        values = {"request": self.request, "salt": self.salt, "rows": rows, "added": added}
        return write_private(Path(path), json.dumps(values, indent=1) + "\n")

    def report(self, path: str | Path) -> Path:
        """Write the result as one self-contained HTML page, readable by its owner alone.

        Args:
            path: the file to write; an existing one is replaced.

        Returns:
            The path of the page.
        """
        from pybrush.report import write_page

        return write_page(self, Path(path))
