"""The hash functions of the record format, in one place.

Every byte string that is hashed goes through here, so that docs/record_format.md can be checked
against this one file. All hashes are BLAKE2b (RFC 7693); `person` keeps the uses apart.
"""

from __future__ import annotations

from hashlib import blake2b

KEY_BYTES = 32
NAME_BYTES = 16


def u64(number: int) -> bytes:
    """Encode an integer of 0 to 2^64 - 1 as eight little-endian bytes."""
    return int(number).to_bytes(8, "little")


def chained(person: str, *parts: bytes) -> bytes:
    """Return the 32-byte hash of `parts`, each preceded by its length, under `person`."""
    state = blake2b(digest_size=32, person=person.encode("ascii"))
    for part in parts:
        state.update(u64(len(part)))
        state.update(part)
    return state.digest()


def keyed(key: bytes, person: str, data: bytes) -> bytes:
    """Return the 16-byte hash of `data` under the record's secret `key` and `person`."""
    return blake2b(data, digest_size=NAME_BYTES, key=key, person=person.encode("ascii")).digest()


def word(*parts: bytes) -> int:
    """Return the hash of the joined `parts` as one 64-bit integer (BLAKE2b with digest_size 8)."""
    return int.from_bytes(blake2b(b"".join(parts), digest_size=8).digest(), "little")
