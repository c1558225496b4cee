"""What a forget file names: the only way in which ids reach the command, which takes none as arguments.

A text file in UTF-8, one entry a line. No entry is ever part of a message: what is printed is often kept.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pybrush.errors import ForgetError
from pybrush.names import Names
from pybrush.record import Record

KINDS = ("ids", "subjects", "rows")
QUEUE_KINDS = ("ids", "subjects", "amend")
TYPES = ("auto", "int", "str")

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
"""Integers as Python prints them: 007 and +7 can only be text."""


def entries(path: Path) -> list[str]:
    """Return the lines of a forget file that are not empty, as they stand.

    Raises:
        ForgetError: where it cannot be read or names nothing.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ForgetError(f"{path} must be text in UTF-8; byte {error.start} of it is not.") from None
    except OSError as error:
        raise ForgetError(f"{path} cannot be read ({error.strerror}); pass a file with one entry a line.") from None
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    found = [line for line in lines if line.strip()]
    if not found:
        raise ForgetError(f"{path} names nothing; write one entry a line.")
    return found


def named(record: Record, kind: str, type_: str, lines: list[str]) -> dict[str, Any]:
    """Return the keyword argument of `unlearn` that entries stand for.

    Args:
        record: the record.
        kind: one of KINDS.
        type_: one of TYPES; rows are integers whatever it says.
        lines: the entries.

    Raises:
        ForgetError: where the record has no such names, or an entry could be two of them.
    """
    if kind == "ids" and record.plan.naming != "ids":
        raise ForgetError(
            f"this record names samples by {record.plan.naming}, so no id tells one; say that the file names others "
            "(kind=subjects or kind=rows), or missing=true."
        )
    if kind == "rows" or type_ == "int":
        return {kind: _integers(lines)}
    return {kind: lines if type_ == "str" else _typed(record, kind, lines)}


def _integers(lines: list[str]) -> list[int]:
    wrong = sum(_INTEGER.fullmatch(line.strip()) is None for line in lines)
    if wrong:
        raise ForgetError(f"{wrong} of {len(lines)} lines of the forget file are not integers; one a line, please.")
    return [int(line) for line in lines]


def _typed(record: Record, kind: str, lines: list[str]) -> list[int | str]:
    """Tell integers from text that looks like them: by what the record knows, or knew before a request.

    What it knows neither way becomes an integer, and is then refused as unknown.
    """
    numbers = [line for line in lines if _INTEGER.fullmatch(line)]
    name = record.names.samples if kind == "ids" else record.names.subjects
    as_int = _known(record, kind, name([int(number) for number in numbers]))
    as_text = _known(record, kind, name(numbers))
    both = sum(one and other for one, other in zip(as_int, as_text, strict=True))
    if both:
        raise ForgetError(f"{both} lines name an integer and a text that are both recorded; say type=int or type=str.")
    text = {line for line, is_text in zip(numbers, as_text, strict=True) if is_text}
    integers = set(numbers) - text
    return [int(line) if line in integers else line for line in lines]


def _known(record: Record, kind: str, names: Names) -> list[bool]:
    """Return which names are recorded, or were forgotten before."""
    query = "SELECT name FROM samples" if kind == "ids" else "SELECT subject FROM subjects"
    held = {name for (name,) in record.ledger.rows(query)}
    gone = {name for (name,) in record.ledger.rows("SELECT name FROM suppressions")}
    marks = record.names.suppressed(names)
    return [name.tobytes() in held or mark.tobytes() in gone for name, mark in zip(names, marks, strict=True)]
