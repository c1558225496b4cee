"""AES-256-GCM over one file: ciphertext and tag from key, nonce and bytes, and back.

A file is worked through in pieces, so that a state lies in memory once and not twice, and so that files of more
than two gigabytes work, which the one-call interface of `cryptography` refuses. Guide: docs/record_format.md,
"Encryption".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pybrush.errors import CorruptRecordError, MissingExtraError, UnsupportedError

ALGORITHM = "AES-256-GCM"
NONCE_BYTES, TAG_BYTES = 12, 16

_PIECE = 1 << 24
_MOST = 2**36 - 32
"""Bytes that GCM can encrypt under one nonce."""


def check_installed() -> None:
    """Check that what encrypts is installed.

    Raises:
        MissingExtraError: naming the extra.
    """
    try:
        import cryptography  # noqa: F401 (looked for, not used)
    except ImportError as error:
        raise MissingExtraError(
            "a record with encrypted stages needs cryptography, which is not installed: pip install 'pybrush[encrypt]'."
        ) from error


def encrypted(key: bytes, nonce: bytes, bound: bytes, plain: bytes) -> Iterator[bytes]:
    """Yield the ciphertext in pieces, and its tag at the end.

    Args:
        key: 32 bytes.
        nonce: 12 bytes, never twice under one key.
        bound: what the ciphertext belongs to; decryption asks for the same.
        plain: what to encrypt.

    Raises:
        UnsupportedError: for more than 64 gigabytes.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    if len(plain) > _MOST:
        raise UnsupportedError(f"a state of {len(plain)} bytes is too large to be encrypted; fit without encrypt=True.")
    work = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
    work.authenticate_additional_data(bound)
    view = memoryview(plain)
    for at in range(0, len(view), _PIECE):
        yield work.update(view[at : at + _PIECE])
    yield work.finalize() + work.tag


def decrypted(key: bytes, nonce: bytes, bound: bytes, path: Path) -> bytes:
    """Return what was encrypted into a file; nothing of it where a single bit is not as it was.

    Raises:
        CorruptRecordError: where the file was changed, or is not what `bound` names.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    work = Cipher(algorithms.AES(key), modes.GCM(nonce)).decryptor()
    work.authenticate_additional_data(bound)
    left = path.stat().st_size - TAG_BYTES
    found: list[bytes] = []
    with path.open("rb") as stream:
        while left > 0 and (piece := stream.read(min(left, _PIECE))):
            found.append(work.update(piece))
            left -= len(piece)
        tag = stream.read()
    try:
        work.finalize_with_tag(tag)
    except (InvalidTag, ValueError) as error:  # ValueError for a tag of another length
        raise CorruptRecordError(
            f"{path} is not what was encrypted under its key for its stage: it was changed, exchanged or truncated. "
            "Restore the stage from a backup."
        ) from error
    return b"".join(found)
