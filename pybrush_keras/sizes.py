"""What a training will be made for, read from objects that were built and before any of them is trained."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import keras

from pybrush.plan.forecast import Sizes
from pybrush_keras.arguments import FitArguments
from pybrush_keras.sisa import SISA


def sizes_of(sisa: SISA, model: Any, arguments: FitArguments) -> Sizes:
    """Return samples, shards, slices, epochs and the bytes of a stage of a fit.

    Raises:
        UnsupportedError: for data whose rows cannot be picked.
    """
    record = sisa.recorded() if None in (sisa.shards, sisa.slices) else None
    plan = None if record is None else record.plan
    return Sizes(
        samples=len(arguments.rows()),
        shards=sisa.shards or (plan.shards if plan is not None else 1),
        slices=sisa.slices or (plan.slices if plan is not None else 1),
        epochs=arguments.epochs,
        stage_bytes=_stage_bytes(model),
        has_subjects=sisa.naming.subjects is not None,
    )


def _stage_bytes(model: Any) -> int | None:
    """Return the bytes of all variables and two moments of what is trained; None where none are made yet."""
    if not model.built or not model.variables:
        return None
    return _bytes(model.variables) + 2 * _bytes(model.trainable_variables)


def _bytes(variables: Iterable[Any]) -> int:
    return sum(math.prod(v.shape) * _itemsize(v.dtype) for v in variables)


def _itemsize(dtype: str) -> int:
    bits = re.search(r"\d+", keras.backend.standardize_dtype(dtype))  # bool has none
    return 1 if bits is None else int(bits[0]) // 8
