"""What a request has to do, worked out before it is accepted: every refusal comes from here, and nothing is touched."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pybrush.build import Sources, check_rows, due_stages, holdings_of
from pybrush.change import Change
from pybrush.edit import Edit, check_edit
from pybrush.errors import ForgetError
from pybrush.method import Terms
from pybrush.outcome import Prospect
from pybrush.plan.graph import Stage
from pybrush.record.check_needed import check_needed
from pybrush.record.check_releases import check_serving
from pybrush.record.queue import drawn
from pybrush.record.record import Record
from pybrush.record.resolve import NOTHING, Resolution, Wish, resolve
from pybrush.record.samples import Holdings, Samples, hold
from pybrush.record.transaction import Target, orphans_of, target_of
from pybrush.standing import Standing, is_served, standing_after


@dataclass(frozen=True)
class Work:
    """What a request has to do.

    Attributes:
        change: what it strikes and records.
        target: the record as it will be.
        holdings: the rows at hand for it.
        todo: the stages to train.
        standing: what serves its shards.
        edit: what an approximate method is to do; None where there is none, or nothing for it to do.
    """

    change: Change
    target: Target
    holdings: Holdings
    todo: list[Stage]
    standing: Standing
    edit: Edit | None

    def prospect(self, terms: Terms) -> Prospect:
        """Return what a dry run tells of it."""
        return Prospect(self.target, self.standing, terms)


def intended(
    record: Record, sources: Sources, wish: Wish | None, terms: Terms
) -> tuple[Resolution, Work | None]:  # fmt: skip
    """Resolve a wish and say what the record would become; None where nothing is left to do."""
    samples, wish = record.samples(), None if wish is None else drawn(record, wish)
    absent_asked, new_asked = (False, False) if wish is None else (wish.missing, wish.admits)
    holdings = holdings_of(record, samples, sources.roster, absent_asked=absent_asked, new_asked=new_asked)
    resolution = NOTHING if wish is None else resolve(record, samples, holdings, wish)
    found = resolution.change
    if found.is_empty and is_served(record, terms.guarantee):
        return resolution, None
    strikes = replace(found.strikes, orphans=orphans_of(record, samples, found))
    return resolution, work_of(record, sources, samples, replace(found, strikes=strikes), terms)


def work_of(record: Record, sources: Sources, samples: Samples, change: Change, terms: Terms) -> Work:
    """Return what there is to do, or refuse where the record that would come of it cannot be built."""
    target = target_of(record, samples, change)
    if not target.stages:
        raise ForgetError(
            f"after striking {change.forgotten} of {samples.rows} rows nothing is left to train on; delete the model "
            "and its record instead."
        )
    standing = standing_after(record, target.stages, terms)
    holdings, todo = hold(target.samples, sources.roster), due_stages(record, target.stages, standing.served)
    check_needed(record, samples, target.stages, todo)
    check_serving(record, {**standing.kept, **standing.began})
    check_rows(record, target.samples, holdings, sources, todo)
    edit = None
    if terms.method is not None and standing.edited:
        edit = Edit(terms.method, standing, samples, hold(samples, sources.roster), target, holdings)
        check_edit(record, sources, edit, change)
    return Work(change, target, holdings, todo, standing, edit)
