"""Declarations: the user's word on what code cannot know, kept in the ledger for every later guarantee.

The chain of events gets a salted commitment to the words and never the words themselves, since they are
the user's and may be replaced. Guide: docs/guarantees.md, "Declare what you know".
"""

from __future__ import annotations

import secrets

from pybrush.errors import ConfigurationError
from pybrush.hashing import chained
from pybrush.record.ledger import Ledger, now

PROVED = frozenset({"placement"})
"""Names of assumptions that hold by construction, on which nobody's word is needed."""

LONGEST_NAME, LONGEST_STATEMENT = 200, 500
"""Characters; a name has room for that of a class inside functions."""


def declare(ledger: Ledger, name: str, statement: str) -> None:
    """Write a declaration in place of an earlier one of the same name (see `Record.declare`); under the lock."""
    _check_text("the name of an assumption", name, LONGEST_NAME)
    _check_text("the statement of a declaration", statement, LONGEST_STATEMENT)
    if name in PROVED:
        raise ConfigurationError(f"{name!r} holds by construction and is not declared; leave it out.")
    salt = secrets.token_bytes(16)
    with ledger.writing("declaration"):
        ledger.change("INSERT OR REPLACE INTO declarations VALUES (?, ?, ?, ?)", (name, statement, now()[:10], salt))
        (count,) = ledger.rows("SELECT count(*) FROM declarations")[0]
        ledger.append_event("declared", commitment=commitment(salt, name, statement).hex(), declarations=count)


def declarations(ledger: Ledger) -> dict[str, str]:
    """Return name -> statement of all declarations, by name."""
    return dict(ledger.rows("SELECT name, statement FROM declarations ORDER BY name"))


def commitment(salt: bytes, name: str, statement: str) -> bytes:
    """Return what stands for a declaration in the events, 32 bytes."""
    return chained("pybrush-commit", salt, name.encode(), statement.encode())


def _check_text(what: str, text: str, longest: int) -> None:
    if not isinstance(text, str) or not text.strip() or len(text) > longest or not text.isprintable():
        raise ConfigurationError(
            f"{what} must be one line of 1 to {longest} printable characters; got {_shown(text)}. Say it in a sentence."
        )


def _shown(text: object) -> str:
    return f"{len(text)} characters" if isinstance(text, str) and len(text) > LONGEST_NAME else repr(text)
