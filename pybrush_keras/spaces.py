"""What a model returns, as far as the loss tells that it is compiled with.

The constituents' outputs are combined in their own space (`pybrush_keras.aggregate.combine`), so it must be known. A
loss on logits and one on probabilities say it; where none does, `SISA(outputs=...)` has to.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import keras

from pybrush.errors import ConfigurationError
from pybrush_keras import _private

Space = Literal["logits", "log_probs", "probs", "values"]

_OF_CLASSES = {
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "SparseCategoricalCrossentropy",
    "KLDivergence",
}
"""Losses of one distribution over classes."""

_OF_LABELS = {"BinaryCrossentropy", "BinaryFocalCrossentropy"}
"""Losses of labels one by one. The mean of the constituents' probabilities of a label is its probability, so
probabilities are plain values; a mean of logits is not a logit of the mean, so logits have no space here."""

_OF_VALUES = {
    *("MeanSquaredError", "MeanAbsoluteError", "MeanAbsolutePercentageError", "MeanSquaredLogarithmicError"),
    *("LogCosh", "Huber", "CosineSimilarity", "Poisson", "Hinge", "SquaredHinge"),
}
"""Losses of numbers whose mean is such a number."""


def space_of(model: Any, declared: Space | None) -> Space:
    """Return what a model returns: as declared, else as its loss tells.

    Raises:
        ConfigurationError: naming the four words, where a word is unknown or nothing is declared and no loss tells.
    """
    if declared is not None:
        if declared not in get_args(Space):
            raise ConfigurationError(f"outputs must be 'logits', 'log_probs', 'probs' or 'values'; got {declared!r}.")
        return declared
    found = infer_space(model)
    if found is None:
        raise ConfigurationError(
            f"the loss of {model.name} does not tell what it returns{_reason(model)}. Say it with "
            "SISA(outputs='logits', 'log_probs', 'probs' or 'values')."
        )
    return found


def infer_space(model: Any) -> Space | None:
    """Return what a compiled model returns, where its loss tells, else None.

    A categorical loss with from_logits=True takes logits, else probabilities, and Kullback-Leibler's probabilities.
    Losses of numbers take values, and so does a binary one of probabilities. A loss of the user's own tells nothing.
    """
    loss = _private.compile_arguments(model).get("loss")
    return _space_of_loss(_only(loss))


def _only(loss: Any) -> Any:
    """Return the loss of the only output, also where it is given by the output's name or in a list."""
    if isinstance(loss, dict):
        loss = list(loss.values())
    if isinstance(loss, (list, tuple)):
        return loss[0] if len(loss) == 1 else None
    return loss


def _space_of_loss(loss: Any) -> Space | None:
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    name, settings = _described(loss)
    from_logits = bool(settings.get("from_logits", False))
    if name in _OF_CLASSES and settings.get("axis", -1) == -1:
        return "logits" if from_logits else "probs"
    if name in _OF_VALUES or (name in _OF_LABELS and not from_logits):
        return "values"
    return None


def _described(loss: Any) -> tuple[str, dict[str, Any]]:
    """Return the name of Keras' class for a loss, and the arguments it was made with; "" for others."""
    settings: dict[str, Any] = {}
    if isinstance(loss, partial):
        loss, settings = loss.func, dict(loss.keywords)
    for name in sorted(_OF_CLASSES | _OF_LABELS | _OF_VALUES):
        kind = getattr(keras.losses, name)
        if isinstance(loss, kind):
            return name, loss.get_config()
        if loss is kind().fn:
            return name, settings
    return "", {}


def _reason(model: Any) -> str:
    loss = _private.compile_arguments(model).get("loss")
    if loss is None:
        return ", since it is compiled with none"
    if _described(keras.losses.get(loss) if isinstance(loss, str) else loss)[0] in _OF_LABELS:
        return ": logits of labels one by one cannot be combined; let the model return sigmoid probabilities, 'values'"
    return ""
