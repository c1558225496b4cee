"""Where does one NumPy array lie in another's memory? Answered only where it is certain; reads no data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def places_of(whole: NDArray[Any] | None, part: NDArray[Any] | None) -> range | None:
    """Return which rows of an array another one is a view of.

    Args:
        whole: an array; axis 0 counts the rows. Both must be alive, so that an address means one thing.
        part: another array.

    Returns:
        The positions in `whole` of the rows of `part`, in order; None where it is not made of whole rows of it.

    Example:
        >>> table = np.zeros((10, 3))
        >>> places_of(table, table[2:8:3]), places_of(table, table[:, :2]), places_of(table, table[[2, 5]])
        (range(2, 8, 3), None, None)
    """
    if whole is None or part is None or not _have_equal_rows(whole, part):
        return None
    stride = whole.strides[0]
    start, over = divmod(_address(part) - _address(whole), stride)
    # The stride of a single row says nothing.
    step, uneven = divmod(part.strides[0], stride) if len(part) > 1 else (1, 0)
    if over or uneven or not step:
        return None
    places = range(start, start + step * len(part), step)
    return places if min(places) >= 0 and max(places) < len(whole) else None


def _have_equal_rows(whole: NDArray[Any], part: NDArray[Any]) -> bool:
    """Return whether rows of both have one layout and every row of `whole` an address of its own."""
    rows_differ = (whole.dtype, whole.shape[1:], whole.strides[1:]) != (part.dtype, part.shape[1:], part.strides[1:])
    return not rows_differ and whole.size > 0 and part.size > 0 and whole.strides[0] != 0


def _address(array: NDArray[Any]) -> int:
    address: int = np.asarray(array).__array_interface__["data"][0]
    return address
