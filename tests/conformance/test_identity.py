"""What is the same in every framework, since all compute it from the page of the format: names, cells, orders, steps.

Expected values come from `format_reader`, which knows that page alone, and from a network of twenty lines of NumPy. So
records of two frameworks agree where each agrees with these, and no process needs the other framework.
"""

import random
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conformance.elsewhere import Elsewhere
from tests.conformance.harness import KEY, SEED, SWITCH, Setup, assert_same_record, initial_weights, opened, table
from tests.core import format_reader as reader

PAGE = (Path(__file__).parents[2] / "docs" / "record_format.md").read_text(encoding="utf-8")
SETUP = Setup(network="watching", optimizer="plain", rate=0.1)
ROWS = table().with_equal([2, 7, 30])

NAMINGS = {
    "content": replace(SETUP, named="content"),
    "content and subjects": replace(SETUP, named="content", has_subjects=True),
    "ids": replace(SETUP, slices=3),
    "ids and subjects": replace(SETUP, has_subjects=True, shards=3),
    "position": replace(SETUP, named="position"),
    "in order": replace(SETUP, sequential=True),
}


def names_by_page(setup):
    """Return content digest, pseudonym and placement name of each row, as the page says."""
    digests = [reader.content_digest(KEY, reader.encode((x, y))) for x, y in zip(ROWS.x, ROWS.y, strict=True)]
    owners = [reader.subject_name(KEY, owner) for owner in ROWS.subjects] if setup.has_subjects else [b""] * len(ROWS)
    if setup.named == "content":
        names = [reader.content_name(KEY, digest, owner) for digest, owner in zip(digests, owners, strict=True)]
    else:
        ids = ROWS.ids if setup.named == "ids" else range(len(ROWS))
        names = [reader.pseudonym(KEY, name) for name in ids]
    return digests, names, [owner or name for owner, name in zip(owners, names, strict=True)]


@pytest.mark.parametrize("kind", NAMINGS)
def test_names_contents_cells_and_digests_are_those_of_the_page(kind, framework, shelf):
    setup = NAMINGS[kind]
    digests, names, placed = names_by_page(setup)
    folder = shelf.fitted(setup, ROWS)
    expected = {}
    for digest, name, place in zip(digests, names, placed, strict=True):
        cell = reader.cell(place, setup.shards, setup.slices)
        copies = expected[name][2] + 1 if name in expected else 1
        expected[name] = (*cell, copies, digest)
    with opened(folder) as record:
        rows = record.ledger.rows("SELECT name, shard, slice, copies, content FROM samples")
        cells = record.ledger.rows("SELECT shard, slice, rows, digest FROM cells")
    assert {name: tuple(rest) for name, *rest in rows} == expected
    known = reader.read_record(folder / "record")
    assert {(s, r): (count, digest) for s, r, count, digest in cells} == reader.expected_cells(known)
    assert {stage["key"] for stage in reader.expected_stages(known)} == known["states"].keys() - {"initial"}


@pytest.mark.parametrize("kind", NAMINGS)
def test_every_epoch_has_the_order_of_the_page(kind, framework, tmp_path):
    setup = NAMINGS[kind]
    training = framework.training(tmp_path, setup, ROWS)
    framework.seen()
    training.fit()
    seen = [batch.tolist() for batch in framework.seen()]
    expected = [[float(ROWS.x[row, 0]) for row in batch] for _, batch in batches_by_page(setup, tmp_path)]
    assert seen == expected


def batches_by_page(setup, folder):
    """Return (shard, rows) of each batch of a fit, in order."""
    _, names, placed = names_by_page(setup)
    cells = [reader.cell(place, setup.shards, setup.slices) for place in placed]
    found = []
    for stage in reader.expected_stages(reader.read_record(folder / "record")):
        inside = [row for row, (s, r) in enumerate(cells) if s == stage["shard"] and r <= stage["slice"]]
        for epoch in range(reader.epochs_per_slice(setup.epochs, setup.slices)):
            order = inside if setup.sequential else ordered(inside, names, stage, epoch)
            ends = np.cumsum(reader.batch_sizes(len(order), setup.batch_size)).tolist()
            found += [(stage["shard"], order[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    return found


def ordered(inside, names, stage, epoch):
    """Return the rows of a stage in the order of an epoch."""
    copies: dict[bytes, int] = {}
    members = []
    for row in inside:
        copies[names[row]] = copies.get(names[row], -1) + 1
        members.append((names[row], copies[names[row]]))
    return [inside[place] for place in reader.epoch_order(members, SEED, stage["shard"], stage["slice"], epoch)]


def test_user_code_draws_by_the_seeds_of_the_page_at_the_begin_of_each_stage_and_epoch(framework, tmp_path):
    setup = Setup(network="dense", optimizer="plain")
    SWITCH.set(draws=True)
    framework.training(tmp_path, setup, ROWS).fit()
    assert SWITCH.drawn == list(draws_by_page(setup, tmp_path))


def draws_by_page(setup, folder):
    """Return what Python and NumPy draw first at each place, in order."""
    for stage in reader.expected_stages(reader.read_record(folder / "record")):
        place = SEED, stage["shard"], stage["slice"]
        yield "begin", *first_draws(reader.seed_of(*place, 0, "stage"))
        for epoch in range(reader.epochs_per_slice(setup.epochs, setup.slices)):
            yield "epoch begin", *first_draws(reader.seed_of(*place, epoch, "train"))


def first_draws(seed):
    generator = np.random.RandomState(seed & 0xFFFFFFFF)
    return random.Random(seed).random(), float(generator.random_sample())


# Steps


@pytest.mark.parametrize("optimizer", ["plain", "momentum"])
def test_every_constituent_is_that_of_a_plain_loop_over_numpy(optimizer, framework, tmp_path):
    setup = Setup(network="dense", optimizer=optimizer, rate=0.1, epochs=3, shards=2, slices=2)
    training = framework.training(tmp_path, setup, ROWS)
    training.fit()
    expected = plain_constituents(setup, tmp_path)
    with opened(tmp_path) as record:
        held = framework.constituents(record)
    assert held.keys() == expected.keys()
    for shard, weights in held.items():
        for own, plain, first in zip(weights, expected[shard], initial_weights(), strict=True):
            assert own.dtype == np.float32
            np.testing.assert_allclose(own, plain, rtol=0, atol=1e-5)
            assert np.abs(plain - first).max() > 0.01


def plain_constituents(setup, folder):
    """Train each shard by hand, in double precision."""
    momentum = 0.9 if setup.optimizer == "momentum" else 0.0
    held: dict[int, tuple] = {}
    for shard, rows in batches_by_page(setup, folder):
        if shard not in held:
            weights = [array.astype(np.float64) for array in initial_weights()]
            held[shard] = weights, [np.zeros_like(array) for array in weights]
        weights, moments = held[shard]
        for place, gradient in enumerate(gradients(weights, ROWS.x[rows], ROWS.y[rows])):
            moments[place] = momentum * moments[place] + gradient
            weights[place] = weights[place] - setup.rate * moments[place]
    return {shard: weights for shard, (weights, _) in held.items()}


def gradients(weights, x, y):
    """Return the gradients of the mean cross-entropy of two dense layers with a rectifier between them."""
    kernel, bias, last, offset = weights
    before = x @ kernel + bias
    hidden = np.maximum(before, 0)
    logits = hidden @ last + offset
    error = np.exp(logits - logits.max(1, keepdims=True))
    error /= error.sum(1, keepdims=True)
    error[np.arange(len(y)), y] -= 1
    error /= len(y)
    back = (error @ last.T) * (before > 0)
    return [x.T @ back, back.sum(0), hidden.T @ error, error.sum(0)]


def test_a_process_of_another_framework_makes_the_same_record_but_for_its_keys_and_the_last_digits(elsewhere, tmp_path):
    lightning = Elsewhere("lightning")
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    try:
        number = lightning.start("identity", folder=tmp_path / "there")
        here, there = elsewhere.do("identity", folder=tmp_path / "here"), lightning.answer(number)
    finally:
        lightning.close()
    weights, others = here.pop("weights"), there.pop("weights")
    assert [name for name in here if here[name] != there[name]] == []
    assert len(here["pending"]) > 16 and len(here["batches"]) > 10
    assert weights.keys() == others.keys()
    for shard in weights:
        for own, other in zip(weights[shard], others[shard], strict=True):
            np.testing.assert_allclose(own, other, rtol=0, atol=1e-5)


# The schema


def test_tables_plan_and_manifests_are_those_of_the_page(framework, shelf):
    folder = shelf.fitted(SETUP, ROWS) / "record"
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
        tables = dict(ledger.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
    block = PAGE[PAGE.index("```sql") + 6 :]
    written = [each.strip() for each in block[: block.index("```")].split(";") if each.strip()]
    assert {normal(sql) for sql in tables.values()} == {normal(sql) for sql in written}
    known = reader.read_record(folder)
    assert known["plan"].keys() == set(members("**plan**"))
    for manifest in known["manifests"].values():
        assert manifest.keys() == set(members("## Manifests"))
    assert known["plan"]["adapter"] == framework.adapter


def members(heading):
    """Return the names in the first column of the first table after some words of the page."""
    lines = PAGE[PAGE.index(heading) :].split("\n| ---" if "\n| ---" in PAGE else "\n|---", 1)[1].splitlines()[1:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows += re.findall(r"`(\w+)`", line.split("|")[1])
    return rows


def normal(sql):
    return re.sub(r"\s+", "", sql)


def test_two_fits_of_one_seed_make_the_same_record_and_of_another_seed_another(framework, shelf, tmp_path):
    setup = replace(SETUP, network="dense")
    framework.training(tmp_path, setup, ROWS, weights=1).fit()
    assert_same_record(tmp_path, shelf.fitted(setup, ROWS))
    other = shelf.fitted(replace(setup, seed=SEED + 1), ROWS)
    with opened(tmp_path) as a, opened(other) as b:
        assert not set(a.store.keys()) & set(b.store.keys())
        assert a.digests() == b.digests()
