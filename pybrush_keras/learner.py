"""The Learner of Keras: what the core asks for, answered by a compiled model and the arguments of its fit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pybrush.attributes import opaque_digests
from pybrush.beside import Beside
from pybrush.hidden import Hidden
from pybrush.learner import Horizon, Trained
from pybrush.names import Namer
from pybrush.plan.order import Positions, Seeds
from pybrush.readings import Reader, fingerprint_of_rows
from pybrush_keras import _private, fingerprint, loggers, patches, state
from pybrush_keras.arguments import STEERING, FitArguments, Settings
from pybrush_keras.attributes import REMEDY, known_parts
from pybrush_keras.history import StageHistory, fill, joined
from pybrush_keras.kinds import KINDS
from pybrush_keras.parts import kept_settings, optimizers_of, own_parts
from pybrush_keras.progress import bar
from pybrush_keras.randomness import RANDOMNESS, kept_randomness, seed_all, seed_layers
from pybrush_keras.rows import KerasRows
from pybrush_keras.stage_callback import StageCallback
from pybrush_keras.stage_data import StageData

T = TypeVar("T")

Around = Callable[[Any, tuple[Any, ...], Horizon], AbstractContextManager[None]]
"""(model, callbacks, horizon) -> what is around a stage that is trained."""


@dataclass
class KerasLearner:
    """A model and its data, as the core sees them.

    Attributes:
        model: the user's model, compiled and built.
        arguments: what the user passed to fit.
        rows: what is trained on.
        settings: how rows become batches.
        reader: takes rows, and returns position -> canonical bytes of the row there.
        around: what is around each stage.
        start: returns the state in which the record's training began; None before the first fit.
        histories: of the stages that were trained here, with the columns shard and slice.
        counters: epochs and optimizer steps of the shard's training so far.
    """

    model: Any
    arguments: FitArguments
    rows: KerasRows
    settings: Settings
    reader: Reader
    around: Around
    start: Callable[[], Any]
    histories: list[Any] = field(default_factory=list)
    counters: tuple[int, int] = (0, 0)
    _compiled: bool = field(default=False, repr=False)
    _hidden: Hidden | None = field(default=None, repr=False)
    _semantic: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def read_state(self) -> Any:
        """Return model, optimizers, callbacks and counters."""
        return {
            "model": state.read_model(self.model),
            "optimizers": state.read_optimizers(self.model),
            "callbacks": state.read_attributes(self._callbacks(), known_parts(self.model)),
            "counters": list(self.counters),
        }

    def write_state(self, tree: Any) -> None:
        """Put model, optimizers and callbacks back."""
        state.write_model(self.model, tree["model"])
        state.write_optimizers(self.model, tree["optimizers"])
        state.write_attributes_of(self._callbacks(), tree["callbacks"], known_parts(self.model))
        self.counters = (tree["counters"][0], tree["counters"][1])

    def train_stage(self, data: KerasRows, rows: Callable[[int], Positions], horizon: Horizon, seeds: Seeds) -> Trained:
        """Run one fit of the user's model over the stage's rows."""
        batches = StageData(data, self.settings, rows, seeds)
        watch = StageCallback(batches, horizon, seeds)
        callbacks, history = self.arguments.callbacks, StageHistory()
        seed_all(seeds(0, "stage"))
        seed_layers(self.model, seeds(0, "layers"))
        _private.begin_at_given_epoch(self.model)
        self._compile()
        before = self._beside()
        with self.around(self.model, callbacks, horizon), loggers.by_shard(callbacks, horizon):
            patches.original_fit(self.model)(
                batches,
                epochs=horizon.epochs_before + horizon.epochs,
                initial_epoch=horizon.epochs_before,
                verbose=self.arguments.verbose,
                callbacks=[watch, *callbacks, *bar(callbacks, self.arguments.verbose, horizon), history],
                class_weight=self.settings.class_weight,
                shuffle=False,
                **self._validation(),
            )
        self.histories.append(history)
        # Epochs are those of the plan: a stage that a callback stopped early counts in full.
        self.counters = (horizon.epochs_before + horizon.epochs, self.counters[1] + watch.steps)
        found = before.check(self._beside(), RANDOMNESS, REMEDY)
        return Trained(watch.steps, watch.learning_rate_sum, {"assumptions": found} if found else {})

    def drop_training(self) -> None:
        """Let optimizers be as before their first step."""
        for optimizer in optimizers_of(self.model):
            state.renew(optimizer)

    def build_optimizers(self) -> None:
        """Give the optimizers that a train_step keeps for itself their variables, by a step that is taken back."""
        if all(optimizer.built for optimizer in optimizers_of(self.model)):
            return
        before = self.read_state()
        with kept_randomness():
            self.model.train_on_batch(*self.rows.batch(range(min(len(self.rows), self.settings.batch_size))))
        self.write_state(before)

    def session(self, build: Callable[[], T]) -> T:
        """Run a build; loggers see one training."""
        with loggers.one_file(self.arguments.callbacks):
            return build()

    def semantic(self, namer: Namer) -> dict[str, Any]:
        """Return the semantic fingerprint; it is taken once under each key."""
        if namer.key_id not in self._semantic:
            start = self.start()
            with state.set_as(self.model, start and start["model"]):
                found = fingerprint.semantic(self.model, self.settings.plain(), self.arguments.callbacks)
            self._semantic[namer.key_id] = found | self._steering(namer)
        return self._semantic[namer.key_id]

    def environment(self) -> dict[str, Any]:
        """Return versions, device, threads and processor features."""
        return fingerprint.environment(self.model)

    def show_history(self) -> Any:
        """Let the model's History be that of all stages that were trained here, and return it."""
        self.model.history = joined(self.model, self.histories)
        fill(self.arguments.callbacks, self.model.history)
        return self.model.history

    def _compile(self) -> None:
        """Let no stage run a step that was compiled in the state of another one, or before the fit."""
        if not self._compiled or fingerprint.runs_user_code(self.model, self.arguments.callbacks):
            _private.compile_anew(self.model)
            self._compiled = True

    def _callbacks(self) -> list[tuple[str, Any]]:
        return list(state.stateful_callbacks(self.arguments.callbacks))

    def _beside(self) -> Beside:
        """Return digests of what no stage stores, to be compared after one."""
        callbacks = self._callbacks()
        if self._hidden is None:
            roots = [("data", self.rows.source), ("model", self.model), *callbacks]
            self._hidden = Hidden(roots, KINDS, state.stored(self.model))
        return Beside(
            opaque=opaque_digests([*own_parts(self.model), *callbacks], known_parts(self.model))
            | kept_settings(self.model),
            rows=fingerprint_of_rows(self.rows, self.reader, RANDOMNESS),
            generators=self._hidden.generators(),
            values=self._hidden.values(),
        )

    def _steering(self, namer: Namer) -> dict[str, Any]:
        """Return the digest of validation data where a callback may act on what is found there."""
        told = self._validation()
        if not told or not any(True for _ in state.stateful_callbacks(self.arguments.callbacks)):
            return {}
        digest = fingerprint.validation_digest(told["validation_data"], namer)
        return {"validation": {"data": digest, **{name: told[name] for name in STEERING}}}

    def _validation(self) -> dict[str, Any]:
        return self.arguments.validation(self.rows)
