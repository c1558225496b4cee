"""docs/record_format.md is enough to read a record: its vectors, its tables, and a reader written from it.

`format_reader` knows only the page. What it finds in real records is compared with what PyBrush does.
"""

import json
import re
import shutil
import sqlite3
import struct
from contextlib import closing
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pybrush import forget, hashing, names, request
from pybrush.build import Sources
from pybrush.change import Change
from pybrush.content import encode
from pybrush.plan import order
from pybrush.plan.cost import epochs_per_slice
from pybrush.plan.graph import root_key, slice_digest, stage_graph, stage_key
from pybrush.plan.order import ReleaseSeeds
from pybrush.plan.placement import ShardPlan
from pybrush.record import Record, RecordPlan, cipher, declarations, queue, releases, states
from pybrush.record.fingerprint import canonical_json, semantic_digest
from pybrush.record.ledger import event_digest
from pybrush.record.resolve import Wish
from pybrush.record.store import Manifest
from tests.core import format_reader as reader
from tests.core.numpy_learner import BATCH, NumpyLearner, wish
from tests.core.test_content import palette_image
from tests.core.test_fit_and_forget import by_ids, data, fit, unlearn

KEY = bytes(range(32))
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "record_format.md").read_text(encoding="utf-8")


def vector_blocks():
    """Return block -> name -> value from the page; an indented line goes on with the value above it."""
    blocks = {}
    for title, text in re.findall(r"^```vector (.+)\n((?:.*\n)*?)```$", PAGE, re.MULTILINE):
        lines = re.sub(r"\n +", "", text).splitlines()
        pairs = [re.split(r" +=(?: |$|(?=\S))", line, maxsplit=1) for line in lines]
        blocks[title] = {name: value.strip() for name, value in pairs}
    return blocks


VECTORS = vector_blocks()


def octets(text):
    return bytes.fromhex(text.replace(" ", ""))


def forty(text):
    """Return rows of 40 bytes as (name, content digest, copies)."""
    return [struct.unpack("<16s16sQ", octets(text)[at : at + 40]) for at in range(0, len(octets(text)), 40)]


def as_arrays(rows):
    columns = list(zip(*rows, strict=True))
    return names.as_names(columns[0]), names.as_names(columns[1]), np.array(columns[2], dtype=np.int64)


# The vectors


def test_the_page_has_a_vector_for_everything_that_is_hashed():
    assert set(VECTORS) == {
        "hashes", "names", "content", "placement", "epochs", "order", "seeds", "batch order", "batches", "stages",
        "keys", "state", "layers", "encryption", "fingerprint", "pending file", "events",
    }  # fmt: skip


def test_the_hashes_have_their_vectors():
    vector = VECTORS["hashes"]
    chained, number = octets(vector["H(pybrush-slice; 61, 6263)"]), int(vector["W(61, 6263)"])
    assert reader.hash_parts("pybrush-slice", b"a", b"bc") == hashing.chained("pybrush-slice", b"a", b"bc") == chained
    assert reader.word(b"a", b"bc") == hashing.word(b"a", b"bc") == number


def test_names_have_their_vectors():
    namer, vector = names.Namer(KEY), VECTORS["names"]
    digest = octets(vector["content digest"])
    person = reader.subject_name(KEY, "anna")
    ids = {"id 17": 17, "id -3": -3, 'id "anna"': "anna", 'id "é" (U+00E9)': "é", "id bytes 00": b"\x00"}
    by_page = {
        "key id": bytes.fromhex(reader.key_id(KEY)),
        **{name: reader.pseudonym(KEY, value) for name, value in ids.items()},
        'subject "anna"': person,
        "content digest": digest,
        "content, no subject": reader.content_name(KEY, digest),
        'content, first subject "anna"': reader.content_name(KEY, digest, person),
        "suppression mark of id 17": reader.suppression(KEY, reader.pseudonym(KEY, 17)),
    }
    contents = names.as_names([digest])
    by_pybrush = {
        "key id": bytes.fromhex(namer.key_id),
        **{name: namer.samples([value]).tobytes() for name, value in ids.items()},
        'subject "anna"': namer.subjects(["anna"]).tobytes(),
        "content digest": namer.contents([encode(np.array([[1, 2], [3, -0.5]], "float32"))]).tobytes(),
        "content, no subject": namer.content_samples(contents).tobytes(),
        'content, first subject "anna"': namer.content_samples(contents, [person]).tobytes(),
        "suppression mark of id 17": namer.suppressed(namer.samples([17])).tobytes(),
    }
    assert by_page == by_pybrush == {name: octets(value) for name, value in vector.items()}


SAMPLES = {
    "array": np.array([[1, 2], [3, -0.5]], "float32"),
    "tuple": (np.arange(6, dtype="uint8").reshape(2, 3), 7),
    "mapping": {"text": "é", "label": True, "b": 0.5},
    "list": [None, -1, b"\x00\xff", np.int64(3), False, ()],
    "image": palette_image(),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_contents_have_their_vectors(kind):
    encoded, digest = octets(VECTORS["content"][kind]), octets(VECTORS["content"][f"{kind}, digest"])
    colours = bytes([255, 0, 0, 255, 0, 0, 255, 255])
    image = reader.encode_image("P", (2, 1), b"\x00\x01", colours)
    assert (image if kind == "image" else reader.encode(SAMPLES[kind])) == encode(SAMPLES[kind]) == encoded
    assert reader.content_digest(KEY, encoded) == names.Namer(KEY).contents([encoded]).tobytes() == digest


def test_placement_has_its_vectors():
    vector = VECTORS["placement"]
    shards, slices = int(vector["S"]), int(vector["R"])
    plan = ShardPlan(shards, slices, KEY)
    for name, value in (("id 17", 17), ('id "anna"', "anna"), ("id bytes 00", b"\x00")):
        place = reader.cell(reader.pseudonym(KEY, value), shards, slices)
        assert place == plan.place(value) == tuple(map(int, vector[name].split()))


def test_order_has_its_vectors():
    vector, where = VECTORS["order"], (11, 2, 1, 3)
    for name, z in (("mix(0)", 0), ("mix(1)", 1), ("mix(2^64 - 1)", 2**64 - 1)):
        assert reader.mix(z) == int(order.mix(np.array([z], "u8"))[0]) == int(vector[name], 16)
    assert reader.order_word(*where) == int(vector["c"], 16)
    every = {
        "ids 0 1 2 3 4": ["0", "1", "2", "3", "4"],
        "without id 2": ["0", "1", "3", "4"],
        "with two copies of 2": ["0", "1", "2", "2'", "3", "4"],
    }
    for name, labels in every.items():
        rows = [(reader.pseudonym(KEY, int(label[0])), label.count("'")) for label in labels]
        by_page = [labels[at] for at in reader.epoch_order(rows, *where)]
        at = sorted(range(len(rows)), key=rows.__getitem__)
        copies = np.array([rows[i][1] for i in at])
        stage = order.StageRows(names.as_names(rows[i][0] for i in at), copies, np.array(at))
        by_pybrush = [labels[position] for position in stage.shuffled(*where)]
        assert by_page == by_pybrush == vector[name].split()


def test_seeds_have_their_vectors():
    for name, value in VECTORS["seeds"].items():
        seed, shard, slice_, epoch, rank = map(int, re.findall(r"\d+", name))
        purpose = "stage" if "stage" in name else "train"
        found = reader.seed_of(seed, shard, slice_, epoch, purpose, rank)
        assert found == order.Seeds(seed, shard, slice_)(epoch, purpose, rank)
        assert (found & 0xFFFFFFFF if "low half" in name else found) == int(value)


def test_the_order_of_batches_and_the_seeds_of_layers_have_their_vectors():
    vector, seeds = VECTORS["batch order"], order.Seeds(11, 2, 1)
    for name, epoch, purpose in (("epoch 3, batches", 3, "batches"), ("epoch 0, layers", 0, "layers")):
        seed = int(vector[f"seed 11, s 2, r 1, {name}"])
        assert seed == reader.seed_of(11, 2, 1, epoch, purpose) == seeds(epoch, purpose)
    order_, shuffle = list(map(int, vector["6 batches"].split())), seeds(3, "batches")
    assert order_ == reader.batch_order(6, shuffle) == order.batch_order(6, shuffle).tolist()
    for place in (0, 1):
        assert int(vector[f"layer {place}"]) == reader.layer_seed(seeds(0, "layers"), place)


def test_epochs_and_batches_have_their_vectors():
    for name, value in VECTORS["epochs"].items():
        epochs, slices = map(int, re.findall(r"\d+", name))
        assert reader.epochs_per_slice(epochs, slices) == epochs_per_slice(epochs, slices) == int(value)
    for name, value in VECTORS["batches"].items():
        rows, batch = map(int, re.findall(r"\d+", name))
        asked = (rows, batch, "drop_last" in name)
        assert reader.batch_sizes(*asked) == order.batch_sizes(*asked) == list(map(int, value.split()))


def test_rows_too_few_have_their_vectors():
    for name, value in VECTORS["stages"].items():
        counts = list(map(int, name.split()))
        found = re.findall(r"(\d+) adds ([\d ]+), rows (\d+)", value)
        expected = [(int(last), list(map(int, added.split())), int(rows)) for last, added, rows in found]
        digests = {(0, each): bytes(32) for each in range(len(counts))}
        stages = stage_graph(np.array([counts]), digests, ["00" * 32])
        assert reader.trained_stages(counts) == expected
        assert [(stage.slice, list(stage.added), stage.rows) for stage in stages] == expected


def test_keys_have_their_vectors():
    vector = VECTORS["keys"]
    rows, initial, meaning = forty(vector["rows"]), octets(vector["initial digest"]), octets(vector["semantic digest"])
    whole, first = octets(vector["slice digest"]), octets(vector["slice digest, first row alone"])
    assert reader.slice_digest(rows) == slice_digest(*as_arrays(rows)) == whole
    assert reader.slice_digest(rows[:1]) == slice_digest(*as_arrays(rows[:1])) == first
    root = vector["root(3)"]
    assert reader.root_key(initial, meaning, 3) == root_key(initial, meaning, 3) == root
    below = vector["key(3, 0)"]
    assert reader.stage_key(root, 0, [whole]) == stage_key(root, 0, [whole]) == below
    both = [first, whole]
    assert reader.stage_key(below, 2, both) == stage_key(below, 2, both) == vector["key(3, 2)"]
    assert vector["initial digest"] == VECTORS["state"]["initial digest"]
    assert vector["semantic digest"] == VECTORS["fingerprint"]["semantic digest"]


def test_a_stage_that_shares_a_tensor_with_the_initial_state_has_its_vector(tmp_path):
    weight = np.array([[1.5, -2.0]], "<f4")
    initial, stage = tmp_path / "initial", tmp_path / "stages" / "key"
    for folder in (initial, stage):
        folder.mkdir(parents=True)
    states.save(initial, {"weight": weight, "tied": weight, 0: ("adam", 0.5, None)})
    states.save(stage, {"weight": weight, "head": np.ones(1, "<f4"), 0: 7}, initial=initial)
    tree, tree_json, tensors = reader.read_state(stage)
    assert tree_json == VECTORS["layers"]["tree.json"].encode()
    assert tensors.keys() == {"000000", "initial/000000"} and tensors["000000"] == octets("0000803f")
    assert np.array_equal(tree["weight"], weight) and tree["head"] == 1 and tree[0] == 7


def test_the_state_has_its_vector(tmp_path):
    vector = VECTORS["state"]
    weight = np.array([[1.5, -2.0]], "<f4")
    states.save(tmp_path, {"weight": weight, "tied": weight, 0: ("adam", 0.5, None)})
    tree, tree_json, tensors = reader.read_state(tmp_path)
    assert tree_json == vector["tree.json"].encode()
    assert tensors == {"000000": octets(vector["tensor 000000"])}
    assert reader.initial_digest(tree_json, tensors) == states.init_digest(states.load(tmp_path))
    assert reader.initial_digest(tree_json, tensors) == vector["initial digest"]
    assert np.array_equal(tree["weight"], weight) and tree["tied"] is tree["weight"] and tree[0] == ("adam", 0.5, None)


def test_encryption_has_its_vector(tmp_path):
    vector, nonce = VECTORS["encryption"], bytes(range(12))
    plain, bound, sealed = vector["tree.json"].encode(), vector["associated data"].encode(), octets(vector["file"])
    assert bound == reader.bound_to(VECTORS["keys"]["key(3, 0)"], "tree.json")
    assert b"".join(cipher.encrypted(KEY, nonce, bound, plain)) == AESGCM(KEY).encrypt(nonce, plain, bound) == sealed
    (tmp_path / "tree.json").write_bytes(sealed)
    assert cipher.decrypted(KEY, nonce, bound, tmp_path / "tree.json") == plain


def test_the_fingerprint_has_its_vector():
    vector = VECTORS["fingerprint"]
    assert canonical_json(json.loads(vector["text"])) == vector["text"]
    digest = semantic_digest(json.loads(vector["text"])).hex()
    assert reader.semantic_digest(vector["text"]) == digest == vector["semantic digest"]


def test_the_pending_file_has_its_vector():
    vector = VECTORS["pending file"]
    whole = octets(vector["file, without its last 32 bytes"]) + octets(vector["last 32 bytes"])
    found = reader.read_pending(whole)
    asked = Change.from_bytes(whole)
    assert reader.pending_file(**found) == asked.to_bytes() == whole
    assert found["rows"][0][0] == reader.pseudonym(KEY, 17) and found["rows"][0][2] == 1
    assert found["subjects"] == [reader.subject_name(KEY, "anna")]
    assert found["orphans"] == [reader.subject_name(KEY, 7)]
    struck, added = asked.strikes, asked.additions
    assert [struck.subjects.tobytes()] == found["subjects"] and [struck.orphans.tobytes()] == found["orphans"]
    plan, joined = {"shards": 4, "slices": 3, "order": "sequential"}, found["added"][0]
    assert list(reader.defects_of_pending(plan, found)) == []
    assert joined[0] == added.names.tobytes() == reader.pseudonym(KEY, -3)
    assert joined[1] == added.placements.tobytes() == added.subjects.tobytes() == reader.subject_name(KEY, -3)
    numbers = (added.shards, added.slices, added.copies, added.positions, added.days)
    assert joined[3:] == tuple(int(number[0]) for number in numbers) and found["places"] == added.places.tolist() == [5]
    salt = octets(VECTORS["events"]["salt"])
    assert reader.pending_commitment(salt, found) == asked.commitment(salt) == octets(vector["commitment"])


def test_events_commitments_and_releases_have_their_vectors():
    vector, previous = VECTORS["events"], bytes(32)
    for number in (1, 2):
        parts = (previous, number, *vector[f"event {number}"].split())
        previous = octets(vector[f"event {number}, digest"])
        assert reader.event_digest(*parts) == event_digest(*parts) == previous
    salt, rows = octets(vector["salt"]), forty(VECTORS["keys"]["rows"])
    commitment = octets(vector["commitment"])
    nobody = names.as_names(())
    assert Change(request.Strikes(*as_arrays(rows), nobody)).commitment(salt) == commitment
    assert reader.commitment(salt, reader.row_bytes(rows)) == commitment
    words = (salt, "initial-state", "the weights were random")
    assert reader.declaration_commitment(*words) == declarations.commitment(*words) == octets(vector["declaration"])
    entry = (salt, "ids", [reader.pseudonym(KEY, 17)])
    assert reader.entry_commitment(*entry) == queue.commitment(*entry) == octets(vector["entry"])
    of_fit = reader.release_key(VECTORS["keys"]["root(3)"], "fit", b"")
    assert of_fit == vector["release of the fit"]
    assert reader.release_key(of_fit, "rebuild", commitment) == vector["release of a rebuild"]
    method, release = vector["approximate method"], vector["release of it"]
    assert reader.release_key(of_fit, method, commitment) == releases.release_key(of_fit, method, commitment) == release
    state = vector["its state of shard 3"]
    assert reader.state_key(release, 3) == releases.state_keys(release, [3])[3] == state
    seed = int(vector["its seed of noise"])
    assert reader.release_seed(11, release, 3, "noise") == ReleaseSeeds(11, release, 3)("noise") == seed


# Real records

IDS = [*range(20), *(f"person-{i:012d}" for i in range(10)), *(b"%d" % i for i in range(10))]
SUBJECTS = [[f"subject-{i % 7}", "clinic"] if i % 3 else [] for i in range(40)]


def with_equal_rows():
    x, y = data()
    x[[5, 11, 17]], y[[5, 11, 17]] = x[5], y[5]
    return x, y


def make_by_ids(folder):
    fit(folder, data(), IDS)
    with closing(Record.open(folder, KEY)) as record:
        record.declare("initial-state", "the weights were random")
        record.declare("consent", "all rows came with consent é")
        record.declare("initial-state", "the weights were drawn")
        record.enqueue(ids=[3, 8])
        record.enqueue(ids=[3])
        record.amend(IDS[20:22])
        record.withdraw(record.admit())
        record.admit()
    unlearn(folder, data(), by_ids([3, IDS[25], b"4"]), IDS)
    return data(), [i for i in range(40) if i not in (3, 25, 34)]


def make_by_content(folder):
    rows = with_equal_rows()
    subjects = [["subject-0"] if i in (5, 11, 17) else people for i, people in enumerate(SUBJECTS)]
    fit(folder, rows, subjects=subjects, shards=4, slices=3)
    unlearn(folder, rows, lambda r: Wish(subjects=r.names.subjects(["subject-2"])), subjects=subjects)
    struck = reader.content_name(KEY, content_of(rows, 5), reader.subject_name(KEY, "subject-0"))
    unlearn(folder, rows, lambda r: Wish(names=names.as_names([struck])), subjects=subjects)
    return rows, [i for i in range(40) if i != 5 and "subject-2" not in subjects[i]]


def make_in_order(folder):
    fit(folder, data(), IDS, order="sequential")
    unlearn(folder, data(), by_ids([7]), IDS)
    return data(), [i for i in range(40) if i != 7]


def make_encrypted(folder):
    fitted, _ = fit(folder, data(), IDS, encrypt=True)
    path = folder.with_name("encrypted.ckpt")
    fitted.record.register_artefact(path, fitted.constituents[reader.cell(reader.pseudonym(KEY, 7), 3, 2)[0]], "file")
    fitted.record.close()
    path.write_bytes(b"weights")
    unlearn(folder, data(), lambda record: Wish(names=record.names.samples([7]), purge="list"), IDS)
    with closing(Record.open(folder, KEY)) as record:
        record.settle()
    return data(), [i for i in range(40) if i != 7]


def make_without_contents(folder):
    rows, learner = data(12), NumpyLearner([0.1, -0.2, 0.3])

    def roster_of(namer):
        return request.Roster(namer, 12, IDS[:12], None, None)

    plan = wish(shards=5, slices=3, contents="off")
    with closing(forget.fit(folder, plan, learner, rows, roster_of).record) as record:
        asked = Wish(names=record.names.samples([0]))
        sources = Sources(learner, rows, roster_of(record.names))
        forget.unlearn(record, sources, asked, aggregate=lambda _: None)
    return rows, list(range(1, 12))


MAKERS = {
    "ids": make_by_ids, "content": make_by_content, "sequential": make_in_order, "off": make_without_contents,
    "encrypted": make_encrypted,
}  # fmt: skip


def content_of(rows, position):
    x, y = rows
    return reader.content_digest(KEY, reader.encode((x[position], y[position])))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return kind -> (folder, data, positions left) of a record that was fitted and asked."""
    base = tmp_path_factory.mktemp("records")
    return {kind: (base / kind, *make(base / kind)) for kind, make in MAKERS.items()}


@pytest.fixture(params=MAKERS)
def real(request, made):
    folder, rows, left = made[request.param]
    return reader.read_record(folder), rows, left


def test_a_reader_that_knows_only_the_page_finds_nothing_wrong_with_a_record(real):
    record, _, _ = real
    assert reader.defects(record) == []
    assert reader.key_id(KEY) == record["plan"]["key_id"]
    assert [row["state"] for row in record["tables"]["requests"]] in (["sealed"], ["sealed", "sealed"])


def test_it_names_and_places_every_row_as_the_ledger_does(real):
    record, rows, left = real
    plan, expected = record["plan"], {}
    for position in left:
        content = content_of(rows, position) if plan["contents"] == "digest" else bytes(16)
        if plan["naming"] == "ids":
            name = placement = reader.pseudonym(KEY, IDS[position])
        else:
            people = ["subject-0"] if position in (5, 11, 17) else SUBJECTS[position]
            first = reader.subject_name(KEY, people[0]) if people else b""
            name = reader.content_name(KEY, content, first)
            placement = first or name
        place = reader.cell(placement, plan["shards"], plan["slices"])
        expected.setdefault(name, (placement, *place, content, []))[-1].append(position)
    found = {row["name"]: row for row in record["tables"]["samples"]}
    assert found.keys() == expected.keys()
    for name, (placement, shard, slice_, content, positions) in expected.items():
        row = found[name]
        assert (row["placement"] or name, row["shard"], row["slice"]) == (placement, shard, slice_)
        assert (row["content"], row["copies"]) == (content, len(positions))
        assert row["position"] == (positions[0] if plan["order"] == "sequential" else None)


def test_it_computes_the_stages_that_pybrush_computes(real):
    record, _, _ = real
    opened = Record.open(record["folder"], KEY)
    by_pybrush = [
        (stage.key, stage.parent, stage.shard, stage.slice, stage.rows, stage.starts_shard) for stage in opened.graph()
    ]
    names_of = ("key", "parent", "shard", "slice", "rows", "first")
    assert [tuple(stage[name] for name in names_of) for stage in reader.expected_stages(record)] == by_pybrush
    assert reader.constituents(record) == opened.constituents()
    opened.close()


def test_it_loads_the_weights_of_every_constituent(real):
    record, _, _ = real
    opened = Record.open(record["folder"], KEY)
    assert reader.constituents(record)
    for key in reader.constituents(record).values():
        tree, _, _ = reader.read_state(record["states"][key])
        for name, value in opened.store.load(key)[0].items():
            assert tree[name].dtype == value.dtype and np.array_equal(tree[name], value)
    opened.close()


def test_every_stage_can_be_trained_again_from_the_page_with_the_same_bits(real):
    record, (x, y), left = real
    plan, at = record["plan"], {}
    for position in left:
        at.setdefault(name_at(record, (x, y), position), []).append(position)
    for stage in reader.expected_stages(record):
        tree, _, _ = reader.read_state(record["states"]["initial" if stage["first"] else stage["parent"]])
        learner = NumpyLearner(tree["weights"])
        learner.velocity = np.zeros(3) if stage["first"] else tree["velocity"]
        rows = reader.stage_rows(record, stage)
        positions = [at[name][copy] for name, copy in rows]
        assert stage["epochs_before"] % plan["epochs_per_slice"] == 0
        for epoch in range(plan["epochs_per_slice"]):
            where = (plan["seed"], stage["shard"], stage["slice"], epoch)
            rng = np.random.default_rng(reader.seed_of(*where, "train"))
            shuffled = plan["order"] == "shuffled"
            ordered = [positions[i] for i in reader.epoch_order(rows, *where)] if shuffled else sorted(positions)
            for size in reader.batch_sizes(len(ordered), BATCH):
                batch, ordered = ordered[:size], ordered[size:]
                learner.step(x[batch], y[batch], rng)
        stored, _, _ = reader.read_state(record["states"][stage["key"]])
        assert np.array_equal(stored["weights"], learner.weights)
        assert np.array_equal(stored["velocity"], learner.velocity)


def name_at(record, rows, position):
    """Return the pseudonym of a row; of rows named by content, the one that the ledger has for it."""
    if record["plan"]["naming"] == "ids":
        return reader.pseudonym(KEY, IDS[position])
    content = content_of(rows, position)
    return next(row["name"] for row in record["tables"]["samples"] if row["content"] == content)


def test_of_the_forgotten_only_marks_stay(made):
    folder, rows, _ = made["ids"]
    record = reader.read_record(folder)
    marks = {row["name"] for row in record["tables"]["suppressions"]}
    gone = [reader.pseudonym(KEY, each) for each in (3, IDS[25], b"4")]
    gone += [content_of(rows, IDS.index(each)) for each in (3, IDS[25], b"4")]
    assert marks == {reader.suppression(KEY, name) for name in gone}
    whole = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    assert not [name for name in gone if name in whole or name.hex().encode() in whole]


def test_struck_copies_leave_no_mark_and_an_asking_subject_leaves_one(made):
    record = reader.read_record(made["content"][0])
    marks = {row["name"] for row in record["tables"]["suppressions"]}
    equal = next(row["name"] for row in record["tables"]["samples"] if row["copies"] == 2)
    assert reader.suppression(KEY, equal) not in marks
    assert reader.suppression(KEY, reader.subject_name(KEY, "subject-2")) in marks


def test_the_release_follows_from_the_requests(made):
    record = reader.read_record(made["content"][0])
    first, second = (row["commitment"] for row in record["tables"]["requests"])
    plan = record["plan"]
    root = reader.root_key(octets(plan["initial_digest"]), octets(plan["semantic_digest"]), 0)
    parent = reader.release_key(reader.release_key(root, "fit", b""), "rebuild", first)
    (release,) = record["tables"]["releases"]
    assert (release["parent"], release["request"], release["method"]) == (parent, 2, "rebuild")
    assert release["key"] == reader.release_key(parent, "rebuild", second)


@pytest.fixture
def pending(tmp_path):
    """Return the folder of a record whose request was accepted, and whose training then failed."""
    fitted, learner = fit(tmp_path / "a", data(), IDS)
    stage = fitted.record.graph()[-1]
    learner.fail_at = (stage.shard, stage.slice)
    fitted.record.close()
    victims = [i for i in IDS if reader.cell(reader.pseudonym(KEY, i), 3, 2)[0] == stage.shard][:2]
    with pytest.raises(ArithmeticError):
        unlearn(tmp_path / "a", data(), by_ids(victims), IDS, learner=learner)
    return tmp_path / "a", victims


def test_an_open_request_is_read_from_its_file(pending):
    folder, victims = pending
    record = reader.read_record(folder)
    assert reader.defects(record) == []
    expected = sorted((reader.pseudonym(KEY, i), content_of(data(), IDS.index(i)), 1) for i in victims)
    nothing = {"subjects": [], "orphans": [], "added": [], "pairs": [], "places": []}
    assert record["pending"] == {1: {"rows": expected, **nothing}}
    (asked,), (salt,) = record["tables"]["requests"], record["tables"]["salts"]
    assert (asked["state"], asked["rows"]) == ("pending", 2)
    assert reader.commitment(salt["salt"], reader.row_bytes(expected)) == asked["commitment"]
    assert {row["key"] for row in record["tables"]["wanted"]} > {s["key"] for s in reader.expected_stages(record)}


def test_a_cancelled_request_leaves_no_mark_and_the_stages_as_they_were(pending):
    folder, _ = pending
    opened = Record.open(folder, KEY)
    opened.cancel(1)
    opened.close()
    record = reader.read_record(folder)
    assert reader.defects(record) == [] and record["pending"] == {}
    assert not record["tables"]["suppressions"] and not record["tables"]["salts"]
    assert record["states"].keys() - {"initial"} == {stage["key"] for stage in reader.expected_stages(record)}
    last = record["tables"]["events"][-1]
    assert last["kind"] == "cancelled" and set(json.loads(last["body"])) == event_members()["cancelled"]


# What is damaged is found


def change(statement):
    def damage(folder):
        with closing(sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)) as connection:
            assert connection.execute(statement).rowcount != 0

    return damage


def flip_last_byte(pattern):
    def damage(folder):
        path = sorted(folder.glob(pattern))[-1]
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    return damage


def replace_in_manifest(name, value):
    def damage(folder):
        path = sorted(folder.glob("stages/*/manifest.json"))[0]
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return damage


def drop_stage(folder):
    shutil.rmtree(sorted(folder.glob("stages/*"))[0])


DAMAGES = {
    "version": (change("PRAGMA user_version = 2"), "another version"),
    "fingerprint": (change("UPDATE plan SET value = replace(value, '0.9', '0.8') WHERE name = 'semantic'"), "semantic"),
    "epochs": (change("UPDATE plan SET value = '7' WHERE name = 'epochs'"), "epochs"),
    "an event": (change("UPDATE events SET body = '{\"rows\":41}' WHERE number = 1"), "event 1"),
    "an event taken out": (change("DELETE FROM events WHERE number = 2"), "event 2"),
    "the last event taken out": (change("DELETE FROM events WHERE kind = 'sealed'"), "no event sealed"),
    "words of a declaration": (change("UPDATE declarations SET statement = 'x' WHERE name = 'consent'"), "declaration"),
    "the name of a declaration": (change("UPDATE declarations SET name = 'x' WHERE name = 'consent'"), "declaration"),
    "a declaration taken out": (change("DELETE FROM declarations WHERE name = 'consent'"), "number of declarations"),
    "a declaration put in": (
        change("INSERT INTO declarations VALUES ('x', 'y', '2026-01-31', zeroblob(16))"),
        "declaration x",
    ),
    "a name taken out of the queue": (change("DELETE FROM queued WHERE entry = 1"), "entry 1"),
    "an entry that is served twice": (change("UPDATE queue SET request = 7 WHERE number = 2"), "entry 2"),
    "an entry that waits again": (change("UPDATE queue SET state = 'waiting' WHERE number = 4"), "entry 4"),
    "an entry taken out": (change("DELETE FROM queue WHERE number = 5"), "no entry 5"),
    "an entry that is taken by nobody": (change("UPDATE queue SET state = 'accepted' WHERE number = 5"), "request of"),
    "a name put into the queue": (change("INSERT INTO queued VALUES (9, zeroblob(16))"), "a name in the queue"),
    "a place": (change("UPDATE samples SET shard = 1 - shard % 2 WHERE copies = 1"), "placement"),
    "a content": (change("UPDATE samples SET content = zeroblob(16)"), "cells"),
    "a copy": (change("UPDATE samples SET copies = copies + 1"), "cells"),
    "a sample taken out": (change("DELETE FROM samples WHERE name = (SELECT max(name) FROM samples)"), "cells"),
    "a cell's digest": (change("UPDATE cells SET digest = zeroblob(32)"), "cells"),
    "a wanted stage": (change("DELETE FROM wanted"), "wanted"),
    "a constituent": (change("UPDATE releases SET constituents = '{}'"), "release"),
    "a salt": (change("INSERT INTO salts VALUES (1, zeroblob(16))"), "salt"),
    "a subject": (change("INSERT INTO subjects VALUES (zeroblob(16), zeroblob(16))"), "subjects"),
    "a state": (flip_last_byte("stages/*/state.safetensors"), "state "),
    "the initial state": (flip_last_byte("initial/state.safetensors"), "initial state"),
    "a missing state": (drop_stage, "no state"),
    "a parent": (replace_in_manifest("parent_sha256", "00" * 32), "manifest"),
    "a count of rows": (replace_in_manifest("rows", 1), "manifest"),
}


@pytest.mark.parametrize(("damage", "finding"), DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_damaged_is_found(made, tmp_path, damage, finding):
    folder = tmp_path / "copy"
    shutil.copytree(made["ids"][0], folder)
    damage(folder)
    found = reader.defects(reader.read_record(folder))
    assert any(sentence.startswith(finding) or finding in sentence for sentence in found)


def test_an_encrypted_file_that_is_damaged_is_found_without_its_key(made, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(made["encrypted"][0], folder)
    record = reader.read_record(folder)
    assert all(reader.stored_as_noted(record["states"][stage["key"]], record["manifests"][stage["key"]]["encryption"])
               for stage in reader.expected_stages(record))  # fmt: skip
    shutil.copytree(made["encrypted"][0].with_name("encrypted.keys"), tmp_path / "copy.keys")
    assert reader.defects(record) == []
    flip_last_byte("stages/*/tree.json")(folder)
    (defect,) = reader.defects(reader.read_record(folder))
    assert defect.startswith("encrypted state ")


def test_the_key_ring_holds_one_key_for_each_stage_and_the_id_that_the_plan_has(made):
    folder = made["encrypted"][0]
    record, ring = reader.read_record(folder), folder.with_name("encrypted.keys")
    assert (ring / "ring").read_text() == record["plan"]["encryption"]["ring"]
    noted = {manifest["encryption"]["key_id"] for key, manifest in record["manifests"].items() if key != "initial"}
    assert {path.name for path in ring.iterdir()} == noted | {"ring", "latest"}
    number, digest = (ring / "latest").read_text().split(" ")
    assert {event["number"]: event["digest"].hex() for event in record["tables"]["events"]}[int(number)] == digest
    for stage in reader.expected_stages(record):
        name = record["manifests"][stage["key"]]["encryption"]["key_id"]
        assert re.fullmatch(stage["key"] + r"\.[0-9a-f]{8}", name) and len((ring / name).read_bytes()) == 32


def test_a_damaged_or_missing_pending_file_is_found(pending):
    folder, _ = pending
    path = folder / "pending" / "1"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="pending"):
        reader.read_record(folder)
    path.unlink()
    assert "no pending file 1" in reader.defects(reader.read_record(folder))


# The page names everything that is there, and nothing else


def table_rows(section):
    """Return the names in the first columns of the tables of a part of the page."""
    text = PAGE[PAGE.index(section) :].split("\n|---|", 1)[1].split("\n\n", 1)[0]
    return [name for line in text.splitlines()[1:] for name in re.findall(r"`([^`]+)`", line.split(" | ")[0])]


def columns(connection):
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {table: connection.execute(f"PRAGMA table_info({table})").fetchall() for table in tables}


def test_the_page_has_every_table_and_column_of_the_ledger(made):
    path = made["ids"][0] / "ledger.sqlite"
    with closing(sqlite3.connect(":memory:")) as page, closing(sqlite3.connect(path)) as real:
        page.executescript(re.search(r"```sql\n(.*?)```", PAGE, re.DOTALL)[1])
        assert columns(page) == columns(real)
        for table in columns(real):
            assert f"\n**{table}**: " in PAGE
            assert all(f"`{column[1]}`" in PAGE for column in columns(real)[table])


def test_the_page_has_every_member_of_manifests_and_plan(made):
    record = reader.read_record(made["ids"][0])
    members = set(table_rows("## Manifests")) - {'"initial"'}
    assert all(manifest.keys() == members for manifest in record["manifests"].values())
    assert members == {field.name for field in fields(Manifest)}
    assert set(table_rows("**plan**: ")) == record["plan"].keys() == {field.name for field in fields(RecordPlan)}
    own = record["plan"]["semantic"]["plan"]
    assert all(f"`{name}`" in PAGE and record["plan"][name] == value for name, value in own.items())


def event_members():
    text = PAGE[PAGE.index("| kind | members") :]
    rows = re.findall(r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)+) \|$", text, re.MULTILINE)
    return {kind: set(re.findall(r"\w+", members)) for kind, members in rows}


def test_the_page_has_every_kind_of_event_with_its_members(made):
    known = event_members()
    events = [event for kind in made for event in reader.read_record(made[kind][0])["tables"]["events"]]
    assert {event["kind"] for event in events} == known.keys() - {"cancelled"}
    assert all(json.loads(event["body"]).keys() == known[event["kind"]] for event in events)


def test_the_page_has_every_entry_of_the_folder_and_their_modes_are_private(made):
    named = {name.split("/")[0] for name in table_rows("## Folder")}
    for folder, _, _ in made.values():
        assert {path.name for path in folder.iterdir()} == named - {"ledger.sqlite-journal"}
        for path in [folder, *folder.rglob("*")]:
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


def test_the_page_has_every_member_of_an_outcome(made):
    (asked,) = reader.read_record(made["ids"][0])["tables"]["requests"]
    outcome = json.loads(asked["outcome"])
    assumptions = outcome["guarantee"]["assumptions"]
    named = [*outcome, *outcome["cost"], *outcome["guarantee"], *assumptions[0]]
    section = PAGE[PAGE.index("**requests**: ") : PAGE.index("**salts**: ")]
    assert not [name for name in named if f"`{name}`" not in section]


def test_every_section_that_the_code_points_to_exists():
    code = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("pybrush*/**/*.py"))]
    titles = {title for text in code for title in re.findall(r'record_format\.md, "([^"]+)"', text)}
    assert titles and not [title for title in titles if f"\n## {title}\n" not in PAGE]


def test_every_person_of_a_hash_in_the_code_is_on_the_page():
    code = "".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("pybrush/**/*.py")))
    persons = set(re.findall(r'"(pybrush-[a-z]+)"', code))
    assert persons and set(re.findall(r"[HK]\((pybrush-[a-z]+);", PAGE)) == persons
