"""A reader of records, written from docs/record_format.md alone.

It imports nothing of PyBrush and is slow on purpose: each function is one paragraph of the document, in
the document's order. `read_record` reads a folder, `defects` says what is wrong with it.
"""

import hashlib
import json
import sqlite3
import struct

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# Conventions

MASK = 2**64 - 1


def u64(number):
    return struct.pack("<Q", number)


def hash_parts(person, *parts):
    """H of the document."""
    joined = b"".join(u64(len(part)) + part for part in parts)
    return hashlib.blake2b(joined, digest_size=32, person=person.encode("ascii")).digest()


def hash_keyed(key, person, data):
    """K of the document."""
    return hashlib.blake2b(data, digest_size=16, key=key, person=person.encode("ascii")).digest()


def word(*parts):
    """W of the document."""
    return int.from_bytes(hashlib.blake2b(b"".join(parts), digest_size=8).digest(), "little")


# Names and secrets


def canonical(sample_id):
    if isinstance(sample_id, int):
        return b"i:" + str(sample_id).encode("ascii")
    if isinstance(sample_id, str):
        return b"s:" + sample_id.encode("utf-8")
    return b"b:" + sample_id


def pseudonym(key, sample_id):
    return hash_keyed(key, "pybrush-id", canonical(sample_id))


def subject_name(key, subject):
    return hash_keyed(key, "pybrush-subject", canonical(subject))


def content_digest(key, encoded):
    return hash_keyed(key, "pybrush-content", encoded)


def content_name(key, digest, subject=b""):
    return hash_keyed(key, "pybrush-id", b"c:" + digest + subject)


def suppression(key, name):
    return hash_keyed(key, "pybrush-suppress", name)


def key_id(key):
    return hash_keyed(key, "pybrush-key", b"").hex()


# Content encoding


def item(tag, payload):
    return tag.encode("ascii") + u64(len(payload)) + payload


def encode(value):
    """Return the item of a value; images go through `encode_image`."""
    if isinstance(value, (np.ndarray, np.generic)):
        return encode_array(np.array(value))
    return ITEMS[type(value)](value)


def encode_mapping(value):
    pairs = sorted((encode(key), encode(entry)) for key, entry in value.items())
    return item("m", b"".join(key + entry for key, entry in pairs))


ITEMS = {
    type(None): lambda value: item("n", b""),
    bool: lambda value: item("o", b"\x01" if value else b"\x00"),
    int: lambda value: item("i", str(value).encode("ascii")),
    float: lambda value: item("f", struct.pack("<d", value)),
    str: lambda value: item("s", value.encode("utf-8")),
    bytes: lambda value: item("y", value),
    list: lambda value: item("l", b"".join(encode(entry) for entry in value)),
    tuple: lambda value: item("t", b"".join(encode(entry) for entry in value)),
    dict: encode_mapping,
}


def encode_array(array):
    elements = array.astype(array.dtype.newbyteorder("<")).tobytes(order="C")
    return item("a", encode(array.dtype.name) + encode(tuple(array.shape)) + encode(elements))


def encode_image(mode, size, pixels, palette=None):
    return item("p", encode(mode) + encode(size) + encode(pixels) + encode(palette))


# Placement


def cell(name, shards, slices):
    return int.from_bytes(name[:8], "little") % shards, int.from_bytes(name[8:], "little") % slices


# Order and seeds


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def order_word(seed, shard, slice_, epoch):
    return word(b"order", u64(seed), u64(shard), u64(slice_), u64(epoch))


def epoch_order(rows, seed, shard, slice_, epoch):
    """Return the indices of `rows`, a list of (pseudonym, copy), in the order of one epoch."""
    c = order_word(seed, shard, slice_, epoch)

    def place(index):
        name, copy = rows[index]
        low, high = int.from_bytes(name[:8], "little"), int.from_bytes(name[8:], "little")
        return mix(low ^ mix((high + c + copy * 0x9E3779B97F4A7C15) & MASK)), name, copy

    return sorted(range(len(rows)), key=place)


def seed_of(seed, shard, slice_, epoch, purpose, rank=0):
    numbers = b"".join(u64(number) for number in (seed, shard, slice_, epoch, rank))
    return word(b"seed", numbers, purpose.encode("utf-8"))


def batch_sizes(rows, batch, drop_last=False):
    if rows <= batch:
        return [rows] if rows else []
    sizes, rest = [batch] * (rows // batch), rows % batch
    if rest and not drop_last:
        if rest == 1:
            sizes[-1] += 1
        else:
            sizes.append(rest)
    return sizes


def batch_order(count, seed):
    """Return the batches of an epoch in their order, where whole batches are shuffled."""
    return sorted(range(count), key=lambda i: (mix((seed + i * 0x9E3779B97F4A7C15) & MASK), i))


def layer_seed(seed, place):
    return word(b"layer", u64(seed), u64(place)) & 0x7FFFFFFF


def epochs_per_slice(epochs, slices):
    return -(-2 * epochs // (slices + 1))


# Stages


def row_bytes(rows):
    """Return rows of (name, content digest, copies) as 40 bytes each."""
    return b"".join(name + content + u64(copies) for name, content, copies in rows)


def slice_digest(rows):
    return hash_parts("pybrush-slice", u64(len(rows)), row_bytes(rows))


def root_key(initial_digest, semantic_digest_, shard):
    return hash_parts("pybrush-stage", u64(1), initial_digest, semantic_digest_, u64(shard)).hex()


def stage_key(parent, slice_, digests):
    return hash_parts("pybrush-stage", bytes.fromhex(parent), u64(slice_), *digests).hex()


def trained_stages(counts):
    """Return (slice, added slices, rows) of the trained stages of one shard, from the rows of its slices."""
    stages, waiting, seen = [], [], 0
    for slice_, rows in enumerate(counts):
        if rows == 0:
            continue
        waiting.append(slice_)
        seen += rows
        if seen >= 2:
            stages.append((slice_, waiting, seen))
            waiting = []
    return stages


# State trees


def read_state(folder):
    """Return the tree of a state folder, the bytes of tree.json and the tensors' bytes by name."""
    tree_json = read_file(folder, "tree.json")
    tensors = read_safetensors(read_file(folder, "state.safetensors"))
    if b'"initial/' in tree_json:
        shared = read_safetensors((folder.parents[1] / "initial" / "state.safetensors").read_bytes())
        tensors |= {f"initial/{name}": data for name, data in shared.items()}
    document = json.loads(tree_json)
    if document["format"] != 1:
        raise ValueError("tree.json is of another format")
    spelled = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    if spelled.encode("ascii") != tree_json:
        raise ValueError("tree.json is not in its one spelling")
    return build(document["tree"], tensors, {}), tree_json, tensors


def read_safetensors(data):
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    found = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        if entry["dtype"] != "U8" or entry["shape"] != [end - start]:
            raise ValueError(f"tensor {name} is not flat bytes")
        found[name] = body[start:end]
    return found


def build(node, tensors, made):
    """Return the value of a node; one object for each tensor's name."""
    if node is None or isinstance(node, (bool, str)):
        return node
    tag, *rest = node
    if tag in ("int", "float", "bytes"):
        return {"int": int, "float": float.fromhex, "bytes": bytes.fromhex}[tag](rest[0])
    if tag in ("list", "tuple"):
        items = [build(part, tensors, made) for part in rest[0]]
        return items if tag == "list" else tuple(items)
    if tag in ("dict", "ordered", "counter"):
        return {build(key, tensors, made): build(entry, tensors, made) for key, entry in rest[0]}
    if tag == "tensor":
        codec, kind, shape, order, name = rest
        if name not in made:
            made[name] = build_tensor(codec, kind, shape, order, tensors[name])
        return made[name]
    return (tag, *rest)  # an Enum member or a codec's small value: described, not built


def build_tensor(codec, kind, shape, order, data):
    dtype = np.dtype(kind if codec == "numpy" else {"bfloat16": "<u2"}.get(kind, kind))
    array = np.frombuffer(data, dtype).reshape(shape)
    if order is None:
        return array
    return array.transpose(order).copy(order="C").transpose(np.argsort(order))


def state_sha256(folder):
    files = read_file(folder, "tree.json") + read_file(folder, "state.safetensors")
    return hashlib.sha256(files).hexdigest()


def initial_digest(tree_json, tensors):
    parts = [tree_json] + [tensors[name] for name in sorted(tensors)]
    return hashlib.sha256(b"".join(u64(len(part)) + part for part in parts)).hexdigest()


# Encryption


def bound_to(key, name):
    return f"pybrush-state/1/{key}/{name}".encode("ascii")


def read_file(folder, name):
    """Return a file of a state, decrypted where its manifest says so."""
    path, manifest = folder / name, folder / "manifest.json"
    note = json.loads(manifest.read_bytes())["encryption"] if manifest.exists() else None
    if note is None:
        return path.read_bytes()
    record = folder.parents[1]
    secret = (record.with_name(record.name + ".keys") / note["key_id"]).read_bytes()
    nonce = bytes.fromhex(note["files"][name]["nonce"])
    return AESGCM(secret).decrypt(nonce, path.read_bytes(), bound_to(folder.name, name))


def stored_as_noted(folder, note):
    """Whether encrypted files are those that the manifest names, as they lie there."""
    found = {name: (folder / name).read_bytes() for name in note["files"]}
    return all(
        (len(data), hashlib.sha256(data).hexdigest()) == (note["files"][name]["bytes"], note["files"][name]["sha256"])
        for name, data in found.items()
    )


# Fingerprint


def semantic_digest(text):
    return hash_parts("pybrush-meaning", text.encode("ascii")).hex()


# Requests, events and releases


def added_bytes(added, pairs, places):
    """Return rows of (name, placement name, content digest, shard, slice, copies, position, day) and what follows."""
    rows = b"".join(
        name
        + placement
        + content
        + u64(shard)
        + u64(slice_)
        + u64(copies)
        + (b"\xff" * 8 if at is None else u64(at))
        + struct.pack("<q", day)
        for name, placement, content, shard, slice_, copies, at, day in added
    )
    return rows, b"".join(subject + name for subject, name in pairs), b"".join(map(u64, places))


def pending_file(rows, subjects, orphans, added=(), pairs=(), places=()):
    data = b"PYBRUSH-PENDING1" + b"".join(u64(len(each)) for each in (rows, subjects, orphans, added, pairs, places))
    data += row_bytes(rows) + b"".join(subjects) + b"".join(orphans) + b"".join(added_bytes(added, pairs, places))
    return data + hashlib.sha256(data).digest()


def read_pending(data):
    """Return what a pending file says: rows to strike, subjects that asked, orphans, rows to record, pairs, places."""
    content, closing = data[:-32], data[-32:]
    if content[:16] != b"PYBRUSH-PENDING1" or hashlib.sha256(content).digest() != closing:
        raise ValueError("the pending file is damaged")
    counts, at, parts = struct.unpack("<6Q", content[16:64]), 64, []
    for count, form in zip(counts, ("<16s16sQ", "<16s", "<16s", "<16s16s16s4Qq", "<16s16s", "<Q"), strict=True):
        size = struct.calcsize(form)
        parts.append([struct.unpack(form, content[i : i + size]) for i in range(at, at + count * size, size)])
        at += count * size
    if at != len(content):
        raise ValueError("the pending file is of another length than it says")
    rows, subjects, orphans, added, pairs, places = parts
    return {
        "rows": rows,
        "subjects": [name for (name,) in subjects],
        "orphans": [name for (name,) in orphans],
        "added": [(*row[:6], None if row[6] == MASK else row[6], row[7]) for row in added],
        "pairs": pairs,
        "places": [place for (place,) in places],
    }


def commitment(salt, body, *added):
    return hash_parts("pybrush-commit", salt, body, *(added if any(added) else ()))


def declaration_commitment(salt, name, statement):
    return hash_parts("pybrush-commit", salt, name.encode("utf-8"), statement.encode("utf-8"))


def entry_commitment(salt, kind, names):
    return hash_parts("pybrush-commit", salt, kind.encode("utf-8"), b"".join(sorted(names)))


def event_digest(previous, number, kind, time, body):
    texts = (kind.encode("utf-8"), time.encode("utf-8"), body.encode("utf-8"))
    return hash_parts("pybrush-event", previous, u64(number), *texts)


def release_key(parent, method, commitment_):
    meaning = hash_parts("pybrush-meaning", method.encode("utf-8"))
    return hash_parts("pybrush-release", bytes.fromhex(parent), meaning, commitment_).hex()


def state_key(release, shard):
    return hash_parts("pybrush-release", bytes.fromhex(release), u64(shard)).hex()


def release_seed(seed, release, shard, purpose):
    return word(b"release", u64(seed), bytes.fromhex(release), u64(shard), purpose.encode("utf-8"))


# A whole record


def read_ledger(path):
    """Return user_version and all tables, each a list of dictionaries."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    tables = {name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")] for name in names}
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.close()
    return version, tables


def read_record(folder):
    """Return what a record's folder holds; states are read by `read_state`, one at a time."""
    version, tables = read_ledger(folder / "ledger.sqlite")
    stages = {path.name: path for path in (folder / "stages").iterdir()}
    releases = {path.name: path for path in (folder / "releases").iterdir()}
    states = {"initial": folder / "initial", **stages, **releases}
    return {
        "folder": folder,
        "version": version,
        "tables": tables,
        "plan": {row["name"]: json.loads(row["value"]) for row in tables["plan"]},
        "states": states,
        "manifests": {key: json.loads((path / "manifest.json").read_bytes()) for key, path in states.items()},
        "pending": {
            int(path.name): read_pending(path.read_bytes())
            for path in (folder / "pending").iterdir()
            if path.name.isdigit()
        },
    }


def expected_cells(record):
    """Return (shard, slice) -> (rows, digest) of each cell that has rows, from the samples."""
    samples = sorted(record["tables"]["samples"], key=lambda row: (row["position"] or 0, row["name"]))
    ordered = record["plan"]["order"] == "sequential"
    cells = {}
    for shard, slice_ in {(row["shard"], row["slice"]) for row in samples}:
        own = [row for row in samples if (row["shard"], row["slice"]) == (shard, slice_)]
        seen = [row for row in samples if row["shard"] == shard and row["slice"] <= slice_]
        rows = [(row["name"], row["content"], row["copies"]) for row in (seen if ordered else own)]
        cells[shard, slice_] = (sum(row["copies"] for row in own), slice_digest(rows))
    return cells


def expected_stages(record):
    """Return the trained stages, in order, as dictionaries, from the samples."""
    plan, cells, stages = record["plan"], expected_cells(record), []
    first, meaning = bytes.fromhex(plan["initial_digest"]), bytes.fromhex(plan["semantic_digest"])
    for shard in range(plan["shards"]):
        parent = root_key(first, meaning, shard)
        counts = [cells.get((shard, slice_), (0, b""))[0] for slice_ in range(plan["slices"])]
        for before, (slice_, added, rows) in enumerate(trained_stages(counts)):
            key = stage_key(parent, slice_, [cells[shard, each][1] for each in added])
            stage = {"key": key, "parent": parent, "shard": shard, "slice": slice_, "rows": rows}
            stages.append({**stage, "first": before == 0, "epochs_before": before * plan["epochs_per_slice"]})
            parent = key
    return stages


def served(record):
    """Return shard -> key of the release's state that serves it."""
    held = [json.loads(release["constituents"]) for release in record["tables"]["releases"]]
    return {int(s): state["key"] for each in held for s, state in each.items() if state["folder"] == "releases"}


def constituents(record):
    """Return shard -> key of its last trained stage, or of the release's state that serves it."""
    return {stage["shard"]: stage["key"] for stage in expected_stages(record)} | served(record)


def stage_rows(record, stage):
    """Return the (pseudonym, copy) of the rows of a stage, names ascending, copies counted from 0."""
    rows = sorted(record["tables"]["samples"], key=lambda row: row["name"])
    inside = [row for row in rows if row["shard"] == stage["shard"] and row["slice"] <= stage["slice"]]
    return [(row["name"], copy) for row in inside for copy in range(row["copies"])]


def defects(record):
    """Return what is wrong with a record, one sentence each, in the order of "Reading a record"."""
    found = [*defects_of_ledger(record), *defects_of_samples(record)]
    return found + [*defects_of_states(record), *defects_of_requests(record)]


def defects_of_ledger(record):
    plan, tables = record["plan"], record["tables"]
    if record["version"] != 1 or {manifest["format"] for manifest in record["manifests"].values()} != {1}:
        yield "another version"
    text = next(row["value"] for row in tables["plan"] if row["name"] == "semantic")
    if semantic_digest(text) != plan["semantic_digest"]:
        yield "semantic digest"
    if plan["epochs_per_slice"] != epochs_per_slice(plan["epochs"], plan["slices"]):
        yield "epochs per slice"
    yield from defects_of_events(tables)
    yield from defects_of_declarations(tables)
    yield from defects_of_queue(tables)


def defects_of_events(tables):
    told = {(event["kind"], json.loads(event["body"]).get("request")) for event in tables["events"]}
    previous = bytes(32)
    for number, event in enumerate(sorted(tables["events"], key=lambda row: row["number"]), start=1):
        follows = event_digest(previous, number, event["kind"], event["time"], event["body"])
        if (event["number"], event["digest"]) != (number, follows):
            yield f"event {number}"
        previous = event["digest"]
    due = {("planned", None)}
    for row in tables["requests"]:
        due |= {(kind, row["number"]) for kind in ("accepted", *DUE_EVENTS[row["state"]])}
    yield from (f"no event {kind} of request {number}" for kind, number in due - told)


def defects_of_declarations(tables):
    events = sorted(tables["events"], key=lambda row: row["number"])
    told = [json.loads(event["body"]) for event in events if event["kind"] == "declared"]
    held = tables["declarations"]
    if len(held) != (told[-1]["declarations"] if told else 0):
        yield "number of declarations"
    for row in held:
        made = declaration_commitment(row["salt"], row["name"], row["statement"]).hex()
        if made not in {body["commitment"] for body in told}:
            yield f"declaration {row['name']}"


def defects_of_queue(tables):
    last = {}
    for event in sorted(tables["events"], key=lambda row: row["number"]):
        if event["kind"] in ("queued", "served", "withdrawn"):
            body = json.loads(event["body"])
            last[body.pop("entry")] = (event["kind"], body)
    pending = {row["number"] for row in tables["requests"] if row["state"] == "pending"}
    for row in tables["queue"]:
        if last.pop(row["number"], None) != expected_event(row, tables):
            yield f"entry {row['number']}"
        if row["state"] in ("waiting", "accepted") and (row["state"] == "accepted") != (row["request"] in pending):
            yield f"request of entry {row['number']}"
    yield from (f"no entry {number}" for number in last)
    kinds = {row["number"]: row["kind"] for row in tables["queue"]}
    recorded = {kind: {row["name"] for row in tables["samples"]} for kind in ("ids", "before", "amend")}
    recorded["subjects"] = {row["subject"] for row in tables["subjects"]}
    for row in tables["queued"]:
        if row["name"] not in recorded.get(kinds.get(row["entry"]), ()):
            yield "a name in the queue that is not recorded"


def expected_event(row, tables):
    """Return kind and body of the last event about an entry of the queue."""
    if row["state"] in ("served", "withdrawn"):
        return row["state"], {"request": row["request"]} if row["state"] == "served" else {}
    held = [queued["name"] for queued in tables["queued"] if queued["entry"] == row["number"]]
    made = entry_commitment(row["salt"] or b"", row["kind"], held)
    return "queued", {"what": row["kind"], "commitment": made.hex()}


DUE_EVENTS = {
    "pending": (),
    "committed": ("committed",),
    "collected": ("committed",),
    "sealed": ("committed", "sealed"),
    "cancelled": ("cancelled",),
}


def defects_of_samples(record):
    plan, tables = record["plan"], record["tables"]
    for row in tables["samples"]:
        placement = row["placement"] or row["name"]
        if cell(placement, plan["shards"], plan["slices"]) != (row["shard"], row["slice"]):
            yield f"placement of {row['name'].hex()}"
    recorded = {(row["shard"], row["slice"]): (row["rows"], row["digest"]) for row in tables["cells"]}
    if recorded != expected_cells(record):
        yield "cells"
    if not {row["name"] for row in tables["subjects"]} <= {row["name"] for row in tables["samples"]}:
        yield "subjects of no sample"


def defects_of_states(record):
    plan, manifests = record["plan"], record["manifests"]
    _, tree_json, tensors = read_state(record["states"]["initial"])
    if initial_digest(tree_json, tensors) != plan["initial_digest"]:
        yield "initial state"
    for key, path in record["states"].items():
        note = manifests[key]["encryption"]
        if note is not None and not stored_as_noted(path, note):
            yield f"encrypted state {key}"
        elif manifests[key]["key"] != key or manifests[key]["sha256"] != state_sha256(path):
            yield f"state {key}"
    yield from defects_of_manifests(record)


def defects_of_manifests(record):
    manifests, replaced = record["manifests"], served(record)
    for stage in expected_stages(record):
        manifest = manifests.get(stage["key"])
        parent = manifests.get("initial" if stage["first"] else stage["parent"])
        if manifest is None and stage["shard"] in replaced:
            continue
        if manifest is None:
            yield f"no state {stage['key']}"
            continue
        wrong = [name for name in ("parent", "shard", "slice", "rows") if manifest[name] != stage[name]]
        if wrong or (parent is not None and manifest["parent_sha256"] != parent["sha256"]):
            yield f"manifest {stage['key']}"


def defects_of_releases(record):
    tables, manifests, plan = record["tables"], record["manifests"], record["plan"]
    commitments = {None: b"", **{row["number"]: row["commitment"] for row in tables["requests"]}}
    for release in tables["releases"]:
        root = root_key(bytes.fromhex(plan["initial_digest"]), bytes.fromhex(plan["semantic_digest"]), 0)
        above, commitment_ = release["parent"] or root, commitments[release["request"]]
        if release["key"] != release_key(above, release["method"], commitment_):
            yield "key of the release"
        shas = {key: manifest["sha256"] for key, manifest in manifests.items()}
        last = {
            str(shard): {"key": key, "sha256": shas.get(key), "folder": record["states"][key].parent.name}
            for shard, key in constituents(record).items()
            if key in record["states"]
        }
        if json.loads(release["constituents"]) != last:
            yield "constituents of the release"
    yield from defects_of_chains(record, commitments)


def defects_of_chains(record, commitments):
    manifests = record["manifests"]
    links = [link for key in served(record).values() if key in manifests for link in manifests[key]["links"]]
    kinds = {link["guarantee"]["kind"] for link in links}
    for release in record["tables"]["releases"]:
        kind = json.loads(release["guarantee"])["kind"]
        if kind != ("Empirical" if "Empirical" in kinds else "Certified" if kinds else "Exact"):
            yield "kind of guarantee"
    stages = {stage["shard"]: stage for stage in expected_stages(record)}
    for shard, key in served(record).items():
        manifest = manifests.get(key)
        if manifest is None:
            yield f"no state {key}"
            continue
        made = release_key(manifest["parent"], manifest["method"], commitments[manifest["request"]])
        own = {"request": manifest["request"], "shard": shard, "method": manifest["method"]}
        link = {name: value for name, value in manifest["links"][-1].items() if name != "guarantee"}
        wrong = [name for name in ("shard", "slice", "rows") if manifest[name] != stages[shard][name]]
        if wrong or manifest["release"] != made or key != state_key(made, shard) or link != own:
            yield f"release's state {key}"
        secret = record["states"][key] / "secret"
        if manifest["secret_sha256"] != (state_sha256(secret) if secret.is_dir() else ""):
            yield f"secret state {key}"


def defects_of_requests(record):
    tables = record["tables"]
    yield from defects_of_releases(record)
    open_ = {row["number"]: row for row in tables["requests"] if row["state"] not in ("sealed", "cancelled")}
    keys = {stage["key"] for stage in expected_stages(record)} | set(served(record).values())
    wanted = {row["key"] for row in tables["wanted"]}
    if not keys <= wanted or (not open_ and keys != wanted):
        yield "wanted stages"
    salts = {row["request"]: row["salt"] for row in tables["salts"]}
    if not salts.keys() <= open_.keys():
        yield "salt of a closed request"
    yield from defects_of_open_requests(record, open_, salts)


def defects_of_open_requests(record, open_, salts):
    for number, request in open_.items():
        pending = record["pending"].get(number)
        if pending is None and request["state"] != "collected":
            yield f"no pending file {number}"
        elif number in salts and pending_commitment(salts[number], pending) != request["commitment"]:
            yield f"commitment of request {number}"
        elif pending is not None:
            yield from defects_of_pending(record["plan"], pending)


def pending_commitment(salt, pending):
    added = added_bytes(pending["added"], pending["pairs"], pending["places"])
    return commitment(salt, row_bytes(pending["rows"]), *added)


def defects_of_pending(plan, pending):
    for name, placement, _, shard, slice_, copies, position, _ in pending["added"]:
        if cell(placement, plan["shards"], plan["slices"]) != (shard, slice_) or copies < 1:
            yield f"row to record {name.hex()}"
        if (position is None) != (plan["order"] == "shuffled"):
            yield f"position of {name.hex()}"
    if not {name for _, name in pending["pairs"]} <= {row[0] for row in pending["added"]}:
        yield "subjects of no row to record"
