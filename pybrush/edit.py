"""Running an approximate method: on each constituent that holds forgotten rows, inside a request.

The states it leaves are written aside, published under keys that follow from the request, and never changed, as
stages are: after a crash what was published is kept, and the rest is made again from the same seeds.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import numpy as np

from pybrush.build import Sources, check_rows, publish
from pybrush.chain import Link, is_kept
from pybrush.change import Change
from pybrush.errors import ContentError, GuaranteeError, MissingRowsError, UnsupportedError
from pybrush.learner import Learner
from pybrush.method import Applied, ApproximateMethod, Portion, method_text
from pybrush.plan.graph import Stage, constituents
from pybrush.plan.order import Positions, ReleaseSeeds
from pybrush.record.record import Record
from pybrush.record.releases import commitment_of, current_key, links_of, next_release, state_keys
from pybrush.record.samples import Holdings, Samples
from pybrush.record.store import ReleaseManifest
from pybrush.record.transaction import Target
from pybrush.standing import Standing

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Edit:
    """What a method is to do.

    Attributes:
        method: the method.
        standing: which shards it changes, and what it begins with.
        samples: the record's samples before the request.
        before: the rows at hand for them.
        target: what the record becomes.
        after: the rows at hand for what is left.
    """

    method: ApproximateMethod
    standing: Standing
    samples: Samples
    before: Holdings
    target: Target
    after: Holdings

    def retained(self, shard: int) -> Positions:
        """Return where the rows of a shard lie that stay, ascending."""
        return np.sort(self.after.position[self.target.samples.shards[self.after.sample] == shard])

    def forgotten(self, shard: int) -> Positions:
        """Return where the rows of a shard lie that go, as far as they are at hand, ascending."""
        held = self.before.position[self.samples.shards[self.before.sample] == shard]
        return np.setdiff1d(held, self.retained(shard))

    def struck(self, shard: int) -> int:
        """Return how many rows of a shard go, copies counted."""
        own, left = self.samples, self.target.samples
        return int(own.copies[own.shards == shard].sum() - left.copies[left.shards == shard].sum())


def check_edit(record: Record, sources: Sources, edit: Edit, change: Change) -> None:
    """Check that a method can do what a request asks: that the rows which it reads are at hand and unchanged.

    Raises:
        UnsupportedError: where rows are to be amended or admitted.
        MissingRowsError: with the count of absent rows.
        ContentError: with the count of rows whose content changed under their id.
    """
    if len(change.additions):
        raise UnsupportedError(
            f"the method {edit.method.name!r} only forgets; {change.amended} rows to amend and {change.admitted} to "
            "admit need training. Leave out method=, or ask for them in a request of their own."
        )
    shards = edit.standing.edited
    if "retain" in edit.method.needs:
        last = [stage for shard, stage in constituents(edit.target.stages).items() if shard in shards]
        check_rows(record, edit.target.samples, edit.after, sources, last)
    if "forget" not in edit.method.needs:
        return
    absent = sum(edit.struck(shard) - len(edit.forgotten(shard)) for shard in shards)
    if absent:
        raise MissingRowsError(
            f"{absent} of the rows to forget are not in the data set, and the method {edit.method.name!r} reads them. "
            "Put them back for this request, or leave out method=, so that stages are rebuilt."
        )
    _check_contents(record, sources, edit)


def _check_contents(record: Record, sources: Sources, edit: Edit) -> None:
    if record.plan.naming == "content" or record.plan.contents == "off":
        return
    rows = np.concatenate([edit.forgotten(shard) for shard in edit.standing.edited])
    order = np.argsort(edit.before.position, kind="stable")
    at = order[np.searchsorted(edit.before.position[order], rows)]
    recorded = edit.samples.contents[edit.before.sample[at]]
    changed = int((sources.roster.contents_at(rows) != recorded).any(axis=1).sum())
    if changed:
        raise ContentError(
            f"the content of {changed} rows to forget is not what {record.folder} recorded under their ids. Restore "
            "the data, or leave out method=, so that stages are rebuilt."
        )


def coming_states(record: Record, request: int, standing: Standing) -> dict[int, str]:
    """Return shard -> key of the state that a method makes of it for a request."""
    release = next_release(record, standing.method, commitment_of(record, request))
    return state_keys(release, standing.edited)


def make_states(record: Record, sources: Sources, request: int, edit: Edit) -> None:
    """Run a method on each shard that it changes, and publish what it leaves; call where the framework can train.

    Raises:
        GuaranteeError: where it proves less than it promised.
    """
    for shard, key in coming_states(record, request, edit.standing).items():
        if record.store.has(key):  # made before a crash
            continue
        stage = constituents(edit.target.stages)[shard]
        manifest = _make_state(record, sources, request, edit, stage, key)
        _log.info(
            "%s changed shard %d without training it again: %d updates, %.1f s",
            *(edit.method.name, shard, manifest.steps, manifest.seconds),
        )


def _make_state(
    record: Record, sources: Sources, request: int, edit: Edit, stage: Stage, key: str
) -> ReleaseManifest:  # fmt: skip
    """Change one shard, from what serves it, and publish the new state."""
    learner, shard, began = sources.learner, stage.shard, edit.standing.began[stage.shard]
    release = next_release(record, edit.standing.method, commitment_of(record, request))
    state, parent = record.store.load(began)
    learner.write_state(state)
    portion = Portion(
        shard,
        sources.data,
        edit.forgotten(shard),
        edit.retained(shard),
        ReleaseSeeds(record.plan.seed, release, shard),
        record.store.load_secret(began),
    )
    started = time.perf_counter()
    applied = _applied(edit.method, learner, portion)
    learner.drop_training()
    manifest = ReleaseManifest(
        key=key,
        parent=current_key(record) or record.plan.roots[0],
        parent_sha256=parent.sha256,
        shard=shard,
        slice=stage.slice,
        rows=stage.rows,
        steps=applied.steps,
        seconds=time.perf_counter() - started,
        environment=learner.environment(),
        notes=applied.notes,
        release=release,
        request=request,
        method=method_text(edit.method),
        links=tuple(link.plain() for link in _chain(record, request, edit, shard, applied)),
        visits=applied.visits,
    )
    aside = record.store.write_aside(learner.read_state(), manifest, applied.secret)
    publish(record, aside, key, record.store.publish_release)
    return manifest


def _applied(method: ApproximateMethod, learner: Learner, portion: Portion) -> Applied:
    applied = method.apply(learner, portion)
    if not is_kept(method.promise, applied.guarantee):
        raise GuaranteeError(
            f"the method {method.name!r} promised {method.promise} and proved {applied.guarantee} on shard "
            f"{portion.shard}. Change its settings, or leave out method=, so that stages are rebuilt."
        )
    return applied


def _chain(record: Record, request: int, edit: Edit, shard: int, applied: Applied) -> list[Link]:
    """Return the chain of a shard since it was last trained, the new link at its end."""
    began = edit.standing.began[shard]
    before = links_of(record, {shard: began}) if record.stand_ins().get(shard) == began else []
    return [*before, Link(request, shard, method_text(edit.method), applied.guarantee)]
