"""How the constituents of a plan predict together: the mean of their probabilities, or a vote.

Both are fixed functions of the constituents' outputs. A learned or weighted aggregator would be one more
model that saw the forgotten rows. Guide: docs/guarantees.md.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pybrush.errors import ConfigurationError

SUM_TOLERANCE = 4e-3
"""How far a row's sum may be from 1: bfloat16 moves each entry by up to 2^-8 of it. Nothing is rescaled."""

Floats = NDArray[np.float64]


def aggregate(probabilities: ArrayLike, how: Literal["mean", "vote"] = "mean") -> Floats:
    """Combine the class probabilities of several constituents.

    Args:
        probabilities: one distribution over classes for each constituent and sample, real numbers, shape
            (constituents, samples, classes).
        how: "mean" averages over constituents. "vote" lets each constituent vote for its likeliest class, of
            equal ones the lowest, and returns (votes + 1 / classes) / (constituents + 1), so that no class
            has probability 0 and a loss on the result stays finite.

    Returns:
        Probabilities, shape (samples, classes), dtype float64.

    Raises:
        ConfigurationError: where the shape is another, an entry is not finite or negative, a row does not sum
            to 1 within SUM_TOLERANCE, or `how` is unknown.

    Example:
        >>> aggregate([[[0.75, 0.25]], [[0.25, 0.75]]]).tolist()
        [[0.5, 0.5]]
    """
    checked = _distributions(probabilities)
    if how == "mean":
        return np.asarray(checked.mean(axis=0))
    if how == "vote":
        return _vote(checked)
    raise ConfigurationError(f"how must be 'mean' or 'vote'; got {how!r}.")


def _vote(probabilities: Floats) -> Floats:
    """Return the smoothed shares of votes, shape (samples, classes)."""
    constituents, samples, classes = probabilities.shape
    votes: Floats = np.zeros((samples, classes))
    for chosen in probabilities.argmax(axis=2):
        votes[np.arange(samples), chosen] += 1
    shares: Floats = (votes + 1 / classes) / (constituents + 1)
    return shares


def _distributions(probabilities: ArrayLike) -> Floats:
    """Return the array in float64 if it holds distributions, else raise ConfigurationError."""
    given: NDArray[Any] = np.asarray(probabilities)
    if given.dtype.kind not in "fiub":
        raise ConfigurationError(
            f"probabilities must be real numbers; got dtype {given.dtype}. Convert them to float32 first."
        )
    if given.ndim != 3 or given.shape[0] == 0 or given.shape[2] == 0:
        raise ConfigurationError(
            "probabilities must have shape (constituents, samples, classes), at least one constituent and "
            f"one class; got shape {given.shape}. Stack the constituents' outputs along a new first axis."
        )
    array = given.astype(np.float64)
    _check_entries(array)
    return array


def _check_entries(array: Floats) -> None:
    """Raise ConfigurationError unless every row is finite, not negative and sums to 1."""
    bad = ~np.isfinite(array) | (array < 0)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ConfigurationError(
            f"probabilities must be finite and not negative; got {array[where]} at {where}. "
            "Pass probabilities, for logits their softmax."
        )
    sums = array.sum(axis=2)
    off = np.abs(sums - 1) > SUM_TOLERANCE
    if off.any():
        where = tuple(int(i) for i in np.argwhere(off)[0])
        raise ConfigurationError(
            f"probabilities must sum to 1 over classes within {SUM_TOLERANCE}; got {sums[where]} for "
            f"(constituent, sample) {where}. Pass probabilities, for logits their softmax."
        )
