"""What runs a training of the `pybrush` command: the arguments of `Model.fit`, in a configuration's group `fit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pybrush.errors import ConfigurationError
from pybrush_keras.arguments import FitArguments, fit_arguments
from pybrush_keras.given import Given
from pybrush_keras.sisa import SISA


class FitData(Protocol):
    """What the group `data` of a configuration builds: the arguments of Keras' methods that are data."""

    def fit_arguments(self) -> Mapping[str, Any]:
        """Return x and, where there are such, y, sample_weight and validation_data of `Model.fit`."""

    def evaluate_arguments(self) -> Mapping[str, Any]:
        """Return x and, where there are such, y, sample_weight and batch_size of `Model.evaluate`."""


class Fit:
    """The arguments of `Model.fit` that are no data.

    Args:
        epochs: the epochs of a fit without slices.
        batch_size: rows in a batch of arrays; None: Keras' 32, and what data has that comes in batches.
        verbose: "auto", 0 (silent), 1 (a bar), or 2 (a line for each epoch).
        shuffle: whether rows are in another order in every epoch; "batch" shuffles whole batches.
        class_weight: class -> weight of its rows in the loss.
        validation_split: share of the rows of arrays, the last ones, that is only validated on.
        validation_steps: batches of the validation data to look at; None: all.
        validation_batch_size: rows in a batch of validation arrays; None: batch_size.
        validation_freq: after how many epochs there is a validation, or a list of the epochs with one.
        callbacks: one of them SISA.

    Raises:
        ConfigurationError: unless there is one SISA callback.
    """

    def __init__(  # noqa: PLR0913 (the arguments of Keras' fit)
        self,
        *,
        epochs: int = 1,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        shuffle: bool | str = True,
        class_weight: Mapping[int, float] | None = None,
        validation_split: float = 0.0,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | Sequence[int] = 1,
        callbacks: Sequence[Any] = (),
    ) -> None:
        own = [callback for callback in callbacks if isinstance(callback, SISA)]
        if len(own) != 1:
            raise ConfigurationError(f"fit needs one SISA callback, as callbacks=keras_sisa; got {len(own)}.")
        self.sisa = own[0]
        self._callbacks = [callback for callback in callbacks if callback is not self.sisa]
        self._settings = {
            "epochs": epochs,
            "batch_size": batch_size,
            "verbose": verbose,
            "shuffle": shuffle,
            "class_weight": class_weight,
            "validation_split": validation_split,
            "validation_steps": validation_steps,
            "validation_batch_size": validation_batch_size,
            "validation_freq": validation_freq,
        }

    def run(self, model: Any, data: FitData) -> None:
        """Fit a compiled model under SISA."""
        arguments = {**self._settings, **data.fit_arguments()}
        self.sisa.fit(model, **arguments, callbacks=self._callbacks)

    def arguments(self, data: FitData) -> FitArguments:
        """Return all that a fit would be called with."""
        return fit_arguments({**self._settings, **data.fit_arguments()}, self._callbacks)

    def given(self, model: Any, data: FitData) -> Given:
        """Return what requests and replays are served with."""
        return Given(model, self.arguments(data))
