"""What a request is served with: what the caller passes, or the fit in this process had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pybrush.errors import ConfigurationError
from pybrush_keras.arguments import FitArguments


@dataclass(frozen=True)
class Given:
    """What was last passed to fit.

    Attributes:
        model: the user's model.
        arguments: those of fit.
    """

    model: Any = None
    arguments: FitArguments | None = None


def completed(now: Given, before: Given) -> Given:
    """Return what the caller passed; what was not passed is what the fit in this process had.

    Raises:
        ConfigurationError: where model or data are not known.
    """
    model = now.model if now.model is not None else before.model
    arguments = now.arguments or before.arguments
    if model is None or arguments is None:
        missing = " and ".join([*(["model="] if model is None else []), *(["x="] if arguments is None else [])])
        raise ConfigurationError(
            f"this SISA callback has fitted nothing in this process; pass {missing}, and what else was passed to fit."
        )
    if not model.compiled:
        raise ConfigurationError("the model is not compiled; call model.compile(...) as for the fit.")
    return Given(model, arguments)
