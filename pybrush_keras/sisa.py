"""SISA as a Keras callback: shards, slices and a record, with model and data untouched.

    sisa = SISA(shards=4, slices=3, record="records/faces")
    model.fit(x, y, epochs=20, callbacks=[sisa])
    result = sisa.unlearn(rows=[17, 404])

Each stage is one fit of Keras' own on the same model, over that stage's rows, from the state of its parent. Source:
Bourtoule et al., Machine Unlearning, IEEE S&P 2021 (arXiv 1912.03817). Guide: docs/pitfalls.md.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from pybrush import forget
from pybrush.errors import ConfigurationError, RecordError, UnsupportedError
from pybrush.learner import Horizon
from pybrush.names import Namer
from pybrush.naming import IdSource, Naming
from pybrush.plan.placement import one_of, positive
from pybrush.preprocessing import noted, say_found
from pybrush.readings import check_fixed, check_seeded
from pybrush.record import Record
from pybrush.record.create import PlanWish, check_encrypt
from pybrush.record.opened import Opened
from pybrush.record.secret import KeySource
from pybrush.request import Roster
from pybrush_keras import _private, checkpoints, patches, serving
from pybrush_keras.arguments import FitArguments, Settings, fit_arguments, listed
from pybrush_keras.deployed import checked_space, described_inputs
from pybrush_keras.fingerprint import check_backend
from pybrush_keras.given import Given
from pybrush_keras.kinds import KINDS
from pybrush_keras.learner import KerasLearner
from pybrush_keras.randomness import RANDOMNESS, kept_randomness
from pybrush_keras.rows import KerasRows
from pybrush_keras.spaces import Space
from pybrush_keras.supported import check_training

_log = logging.getLogger(__name__)

How = Literal["mean", "vote"]

AUGMENTED = (
    "Augment in the model, by layers such as keras.layers.RandomFlip, which draw from generators that SISA seeds: "
    "Keras reads rows ahead of training, so what reading them draws is not the same twice."
)
"""What to do where rows differ each time."""


class SISA(keras.callbacks.Callback):
    """Trains in shards and slices and leaves a record from which samples can be forgotten.

    Args:
        shards: number of shards S; None: the record's, else 1.
        slices: number of slices R of each shard; None: the record's, else 1.
        record: folder of the record; made at the first fit.
        ids: what names a sample: "content" (the keyed digest of the raw sample), "position", a column's
            name, a sequence with one entry a row, or a callable of the data.
        subjects: the persons each row belongs to: a column's name, a sequence or a callable; a person's rows
            lie in one shard and slice.
        aggregate: "mean" of probabilities or "vote".
        outputs: what the model returns: "logits", "log_probs", "probs" or "values"; None: what its loss tells.
        aggregate_step: must be None; the aggregate is a model and needs no steps.
        key: the record's 32 secret bytes or a callable; None: made once and kept beside the record.
        seed: of the training's randomness, 0 <= seed < 2^32; None: that of keras.utils.set_random_seed, else drawn.
        content: "digest" keeps keyed digests of samples, "off" none.
        rebuild_all: must be False: a new generation is made by a new record.
        content_of: takes a raw sample, the tuple (x, y) or (x, y, sample_weight) of a row, and returns what is to be
            compared, for samples of unusual types.
        encrypt: whether each stage is encrypted under a key of its own, which a request destroys with the stage; fixed
            by the first fit. None: the record's, else False. The keys lie beside the record, in `<record>.keys`.
        times: the date of each row, for retention windows: a column's name, a sequence or a callable; None: the day
            on which it is recorded.

    Raises:
        ConfigurationError: for values that cannot work.
        MissingExtraError: for `encrypt=True` where the extra `encrypt` is not installed.
        UnsupportedError: for `rebuild_all` and `aggregate_step`, which this version does not have.
    """

    def __init__(  # noqa: PLR0913 (one argument for each thing a user may decide)
        self,
        shards: int | None = None,
        slices: int | None = None,
        *,
        record: str | os.PathLike[str],
        ids: IdSource = "content",
        subjects: IdSource | None = None,
        aggregate: How = "mean",
        outputs: Space | None = None,
        aggregate_step: None = None,
        key: KeySource = None,
        seed: int | None = None,
        content: str = "digest",
        rebuild_all: bool = False,
        content_of: Callable[[Any], Any] | None = None,
        encrypt: bool | None = None,
        times: IdSource | None = None,
    ) -> None:
        super().__init__()
        _check_absent(rebuild_all=rebuild_all, aggregate_step=aggregate_step is not None)
        self.shards = None if shards is None else positive("shards", shards)
        self.slices = None if slices is None else positive("slices", slices)
        self.record = Path(record).absolute()  # the working folder may be another one later
        self.naming = Naming(ids, subjects, content, content_of, times)
        self.how = one_of("aggregate", aggregate, ("mean", "vote"))
        self.space = one_of("outputs", outputs, (None, "logits", "log_probs", "probs", "values"))
        check_encrypt(encrypt)
        self.key, self.seed, self.encrypt = key, seed, encrypt
        self.given = Given()
        self._opened = Opened()

    # What a user calls

    def fit(self, model: Any, x: Any = None, y: Any = None, **arguments: Any) -> Any:
        """Fit a model under SISA, as `model.fit(x, y, callbacks=[sisa, ...], **arguments)` does.

        Args:
            model: compiled.
            x: inputs, as fit takes them.
            y: targets.
            arguments: further arguments of fit.

        Returns:
            The History of all stages that were trained, with the columns shard and slice.
        """
        callbacks = listed(arguments.pop("callbacks", None))
        return self.start(model, {"x": x, "y": y, **arguments}, callbacks)

    unlearn = serving.unlearn

    # What Keras calls

    def on_train_begin(self, logs: Any = None) -> None:
        """Refuse a fit that PyBrush does not guide: training would go on as if there were no record.

        Raises:
            ConfigurationError: with what to call.
        """
        raise ConfigurationError(
            "SISA did not take part in this fit: Keras' fit was called before pybrush_keras was imported, with a "
            "CallbackList, or with PYBRUSH_NO_PATCH=1. Call sisa.fit(model, x, y, ...) in place of model.fit."
        )

    # What the rest of PyBrush calls

    def start(self, model: Any, given: Mapping[str, Any], callbacks: Iterable[Any]) -> Any:
        """Fit a model, given the arguments of fit by name and all callbacks."""
        callbacks = list(callbacks)
        if sum(isinstance(callback, SISA) for callback in callbacks if callback is not self):
            raise UnsupportedError("two SISA callbacks in one fit: give each record a fit of its own.")
        arguments = fit_arguments(given, [callback for callback in callbacks if callback is not self])
        check_training(model, arguments)
        rows = arguments.rows()
        with kept_randomness(), patches.as_before_on_error(model):
            learner = self.learner(model, arguments, rows, Settings.of(arguments, rows))
            before = learner.read_state()
            try:
                wish = self._wished(learner)
                learner.write_state(before)  # a layer may count how often it is called
                patches.set_mark(model, None)
                forget.fit(self.record, wish, learner, rows, lambda namer: self.roster(rows, namer))
            except BaseException:
                learner.write_state(before)
                raise
        self.given = Given(model, arguments)
        self.mark(model)
        return learner.show_history()

    def learner(self, model: Any, arguments: FitArguments, rows: KerasRows, settings: Settings) -> KerasLearner:
        """Return the core's view of a model and its data; the model is built where it is not."""
        _private.build(model, rows.batch(np.arange(min(len(rows), settings.batch_size))))
        learner = KerasLearner(model, arguments, rows, settings, self.naming.reader, self.in_stage, self._start)
        learner.build_optimizers()
        return learner

    def recorded(self) -> Record | None:
        """Return the opened record, or None where there is none yet, or only one that was never finished."""
        return self._opened.of(self.record, self.key)

    def wish(self, epochs: int, settings: Settings, space: Space | None = None, inputs: Any = None) -> PlanWish:
        """Return what a fit asks of the record; what predicts is noted when it is made."""
        drawn = _private.user_seed() if self.seed is None and self.recorded() is None else self.seed
        return PlanWish(
            shards=self.shards,
            slices=self.slices,
            epochs=epochs,
            seed=drawn,
            order=settings.order,
            naming=self.naming.kind,
            contents="off" if self.naming.content == "off" else "digest",
            adapter="keras",
            key=self.key,
            settings={"outputs": space, "aggregate": self.how, "inputs": inputs},
            encrypt=self.encrypt,
        )

    def roster(self, rows: KerasRows, namer: Namer) -> Roster:
        """Name rows under a record's key.

        Raises:
            ContentError: where they cannot be trained on the same way twice, or not be named.
        """
        check_seeded(rows, self.naming.reader, RANDOMNESS, lambda _: ())
        check_fixed(rows, self.naming.reader, RANDOMNESS, AUGMENTED)
        return self.naming_of(rows).roster(rows, namer)

    def naming_of(self, rows: KerasRows) -> Naming:
        """Return how rows are named, without the entries of those that validation_split took."""
        held = {name: getattr(self.naming, name) for name in ("ids", "subjects", "times")}
        cut = {
            name: value[: len(rows)]
            for name, value in held.items()
            if hasattr(value, "__len__") and not isinstance(value, str) and len(value) == rows.whole_length
        }
        return replace(self.naming, **cut)

    @contextmanager
    def in_stage(self, model: Any, callbacks: tuple[Any, ...], horizon: Horizon) -> Iterator[None]:
        """Keep apart what is saved in a stage, and register it."""
        record = self.recorded()
        if record is None:
            raise RecordError(f"there is no record in {self.record} any more.")
        with (
            checkpoints.in_stage_folders(callbacks, record, horizon),
            patches.in_stage(model, patches.Mark(self, horizon.key, 1)),
        ):
            yield

    def _start(self) -> Any:
        """Return the state in which the record's training began, None where there is none."""
        record = self.recorded()
        return record.store.load("initial")[0] if record is not None and record.store.has("initial") else None

    def mark(self, model: Any) -> None:
        """Note which constituent a model holds now: the last one, which the core loads."""
        record = self.recorded()
        if record is not None:
            held = record.constituents()
            patches.set_mark(model, patches.Mark(self, held[max(held)], len(held)))

    # The fit itself

    def _wished(self, learner: KerasLearner) -> PlanWish:
        """Return what a fit asks of the record; where there is none yet, the model and its data are looked at."""
        recorded, model = self.recorded(), learner.model
        space = self.space
        if recorded is None:
            if patches.was_fitted(model):
                raise ConfigurationError(
                    "this model was trained before, so every shard would start from a state that has seen data which "
                    "no request can remove. Build it anew; or, where it learned from other data alone, save its "
                    "weights, build and compile a new model and load them there."
                )
            space = checked_space(model, space, learner.rows, self.shards or 1)
        else:
            forget.check_adapter(recorded, "keras", 1)
            check_backend(recorded)
        inputs = described_inputs(learner.rows)
        wish = self.wish(learner.arguments.epochs, learner.settings, space, inputs)
        if recorded is None:
            wish = noted(wish, [("data", learner.rows.source)], [model], KINDS)
            say_found(wish)
        return wish


def _check_absent(**given: bool) -> None:
    named = [name for name, is_set in given.items() if is_set]
    if named:
        raise UnsupportedError(
            f"{', '.join(f'{name}=' for name in named)}: not part of this version of SISA for Keras. Leave it out; to "
            "train everything anew start a new record in another folder."
        )
