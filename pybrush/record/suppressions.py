"""Who was forgotten: the marks that keep a name from being trained on again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pybrush.names import Names, among, as_names
from pybrush.record.record import Record

_MANY = 1000
"""Names above which reading every mark once is cheaper than a look-up for each name."""


def suppressed(record: Record, names: Names) -> NDArray[np.bool_]:
    """Return which of some names of samples or subjects were forgotten before, shape (n,)."""
    marks = record.names.suppressed(names)
    if len(marks) > _MANY:
        return among(marks, as_names(mark for (mark,) in record.ledger.rows("SELECT name FROM suppressions")))
    query = "SELECT 1 FROM suppressions WHERE name = ?"
    return np.array([bool(record.ledger.rows(query, (row.tobytes(),))) for row in marks], dtype=bool)
