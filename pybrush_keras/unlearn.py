"""`pybrush_keras.unlearn(model, forget)`: a request for a model that was fitted under SISA in this process."""

from __future__ import annotations

from typing import Any

from pybrush.errors import ConfigurationError
from pybrush.result import UnlearnResult
from pybrush_keras.patches import mark_of


def unlearn(model: Any, forget: Any = None, **arguments: Any) -> UnlearnResult:
    """Forget samples of a model that was fitted under SISA in this process.

    In another process make the callback of the record: `SISA(record=...).unlearn(forget, model=model, x=x, y=y)`.

    Args:
        model: the model that was fitted.
        forget: the rows to forget, as `SISA.unlearn` takes them.
        arguments: further arguments of `SISA.unlearn`.

    Raises:
        ConfigurationError: where the model holds no constituent of a record.
        PyBrushError: see `SISA.unlearn`.
    """
    mark = mark_of(model)
    if mark is None:
        raise ConfigurationError(
            "this model holds no constituent of a record in this process. Call SISA(record=...).unlearn(forget, "
            "model=model, x=x, y=y) with the record that it was trained with."
        )
    result: UnlearnResult = mark.sisa.unlearn(forget, model=model, **arguments)
    return result
