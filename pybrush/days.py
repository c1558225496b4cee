"""Days: when a row came to be, for retention windows, as whole days since 1970-01-01.

Dates reach a record from a column of the data set and from a caller who says how old is too old. Placement, order and
seeds never see them, so that no bit of a model depends on a date.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pybrush.errors import IdError

_FIRST = date(1970, 1, 1)


def day_of(value: Any) -> int:
    """Return the days since 1970-01-01 of one date.

    Args:
        value: a date, a datetime, text such as 2026-01-31 or 2026-01-31T12:00:00Z, or np.datetime64. A time with a
            zone is taken in UTC; one without as it stands.

    Raises:
        IdError: for anything else.

    Example:
        >>> day_of("1970-01-31")
        30
    """
    if isinstance(value, str):
        return _day_of_text(value)
    if isinstance(value, datetime):
        return _day_of_time(value)
    if isinstance(value, date):
        return (value - _FIRST).days
    if isinstance(value, np.datetime64) and not np.isnat(value):
        return int(value.astype("datetime64[D]").astype(np.int64))
    raise IdError(
        f"a date must be a date, a datetime, text such as 2026-01-31, or np.datetime64; got {_shown(value)}. "
        "Convert it first."
    )


def days_of(values: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
    """Return the days since 1970-01-01 of many dates, shape (n,).

    Raises:
        IdError: where one of them is no date (see `day_of`).
    """
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        if np.isnat(values).any():
            raise IdError(f"{int(np.isnat(values).sum())} of {len(values)} dates are NaT; give every row a date.")
        return values.astype("datetime64[D]").astype(np.int64)
    return np.fromiter(map(day_of, values), dtype=np.int64, count=len(values))


def text_of(day: int) -> str:
    """Return a day as text, such as 2026-01-31."""
    return (_FIRST + timedelta(days=day)).isoformat()


@lru_cache(maxsize=4096)
def _day_of_text(text: str) -> int:
    try:
        return _day_of_time(datetime.fromisoformat(text))  # takes text without a time too
    except ValueError as error:
        raise IdError(f"a date must be written as 2026-01-31 or 2026-01-31T12:00:00Z; got {_shown(text)}.") from error


def _day_of_time(time: datetime) -> int:
    if time != time:  # pandas: NaT is a datetime
        raise IdError("a date is NaT; give every row a date.")
    return ((time if time.tzinfo is None else time.astimezone(UTC)).date() - _FIRST).days


def _shown(value: object) -> str:
    return repr(value)[:40] if isinstance(value, str) else type(value).__name__
