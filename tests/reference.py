"""Slow, obvious twins: a sharded training loop that knows neither Record nor keys of stages.

Placement, order and seeds are written again from docs/record_format.md with plain Python integers, so that
a mistake in the library is not repeated here.
"""

import hashlib
import struct

MASK = (1 << 64) - 1


def pseudonym(key, canonical):
    return hashlib.blake2b(canonical, digest_size=16, key=key, person=b"pybrush-id").digest()


def content_digest(key, encoded):
    return hashlib.blake2b(encoded, digest_size=16, key=key, person=b"pybrush-content").digest()


def subject(key, canonical):
    return hashlib.blake2b(canonical, digest_size=16, key=key, person=b"pybrush-subject").digest()


def commitment(salt, body):
    state = hashlib.blake2b(digest_size=32, person=b"pybrush-commit")
    for part in (salt, body):
        state.update(numbers(len(part)) + part)
    return state.digest()


def files_holding(folder, secrets):
    """Return the files under a folder that hold any of some byte strings, raw or in hexadecimal."""
    forms = [form for s in secrets for form in (s, s.hex().encode(), s.hex().upper().encode())]
    held = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path, data in held.items() if any(f in data for f in forms))


def cell(name, shards, slices):
    return int.from_bytes(name[:8], "little") % shards, int.from_bytes(name[8:], "little") % slices


def word(*parts):
    return int.from_bytes(hashlib.blake2b(b"".join(parts), digest_size=8).digest(), "little")


def numbers(*values):
    return struct.pack(f"<{len(values)}Q", *values)


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def epoch_order(members, seed, shard, last, epoch):
    """Order (name, copy, position) triples for one epoch; returns positions."""
    c = word(b"order", numbers(seed, shard, last, epoch))

    def place(member):
        name, copy, _ = member
        low, high = int.from_bytes(name[:8], "little"), int.from_bytes(name[8:], "little")
        return mix(low ^ mix((high + c + copy * 0x9E3779B97F4A7C15) & MASK)), name, copy

    return [member[2] for member in sorted(members, key=place)]


def seed_of(seed, shard, last, epoch, purpose, rank=0):
    return word(b"seed", numbers(seed, shard, last, epoch, rank), purpose.encode())


def release_seed(seed, release, shard, purpose):
    return word(b"release", numbers(seed), bytes.fromhex(release), numbers(shard), purpose.encode())


def batches(order, size, drop_last=False):
    if len(order) <= size:
        return [order] if order else []
    cut = [order[i : i + size] for i in range(0, len(order), size)]
    if drop_last and len(cut[-1]) < size:
        return cut[:-1]
    if len(cut[-1]) == 1 < size:
        return cut[:-2] + [cut[-2] + cut[-1]]
    return cut


def schedule(names, shards, slices, placements=None):
    """Return, shard by shard, the trained stages as (shard, slice, members); members are (name, copy, position).

    Args:
        names: pseudonym of each row, in data set order; equal rows have equal names.
        placements: what decides the cell, where it is not the name itself.
    """
    seen, rows = {}, []
    for position, name in enumerate(names):
        copy = seen[name] = seen.get(name, -1) + 1
        rows.append((cell(placements[position] if placements else name, shards, slices), (name, copy, position)))
    stages = []
    for shard in range(shards):
        members, new = [], False
        for last in range(slices):
            added = [member for place, member in rows if place == (shard, last)]
            members, new = members + added, new or bool(added)
            if new and len(members) >= 2 and added:
                stages.append((shard, last, list(members)))
                new = False
    return stages
