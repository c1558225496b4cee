"""What SISA in Keras can train the same way twice, and the refusal of everything else, in one message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from pybrush.errors import UnsupportedError
from pybrush_keras import _private
from pybrush_keras.arguments import FitArguments
from pybrush_keras.checkpoints import remote_places

_BACKENDS = ("tensorflow", "torch")
"""Where a stage was shown to train to the same bits."""


def check_training(model: Any, arguments: FitArguments) -> None:
    """Refuse what SISA does not handle, all of it in one message.

    Raises:
        UnsupportedError: listing each setting with what to do instead.
    """
    problems = [*_model(model), *_arguments(arguments), *_limits(), *remote_places(arguments.callbacks)]
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UnsupportedError(f"SISA cannot train this exactly; change {len(problems)} settings:\n{listed}")


def _model(model: Any) -> Iterator[str]:
    backend = keras.config.backend()
    if backend not in _BACKENDS:
        yield f"Keras on {backend}: set KERAS_BACKEND to {' or '.join(_BACKENDS)}"
    if not model.compiled:
        yield "a model that is not compiled: call model.compile(optimizer, loss) first"
    if _private.is_distributed(model):
        yield "a distribution strategy: build and train the model on one device"


def _arguments(arguments: FitArguments) -> Iterator[str]:
    epochs = arguments.epochs
    if type(epochs) is not int or epochs < 1:
        yield f"epochs={epochs!r}: give fit a whole number of epochs of at least 1"
    if arguments.initial_epoch:
        yield f"initial_epoch={arguments.initial_epoch!r}: leave it out, SISA goes on where its record stands"
    if arguments.steps_per_epoch is not None:
        yield f"steps_per_epoch={arguments.steps_per_epoch!r}: leave it out, an epoch is all rows of a stage"
    if arguments.class_weight is not None and arguments.sample_weight is not None:
        yield "class_weight with sample_weight: pass one of them, Keras takes no more"


def _limits() -> Iterator[str]:
    epochs, steps = _private.limits()
    if epochs is not None or steps is not None:
        yield (
            "KERAS_MAX_EPOCHS, KERAS_MAX_STEPS_PER_EPOCH or their functions in keras.config: unset them, they cut "
            "every stage short"
        )
