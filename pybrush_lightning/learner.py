"""The Learner of Lightning: what the core asks for, answered by a Trainer and a LightningModule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn

from pybrush.attributes import plain_attributes, write_attributes
from pybrush.beside import Beside
from pybrush.hidden import Hidden
from pybrush.learner import Horizon, Trained
from pybrush.names import Namer
from pybrush.plan.order import Positions, Seeds
from pybrush.readings import fingerprint_of_rows
from pybrush_lightning import _private, fingerprint, ranks, state
from pybrush_lightning.attributes import REMEDY, known_parts
from pybrush_lightning.fresh import renew, renewed
from pybrush_lightning.kinds import KINDS, reading
from pybrush_lightning.limits import Limits, begin_anew
from pybrush_lightning.randomness import RANDOMNESS, kept_randomness, seed_all
from pybrush_lightning.stage_data import LoaderPlan, Share, stage_loader
from pybrush_lightning.stage_loop import Counters, counters, installed, stage_loop
from pybrush_lightning.supported import check_schedulers

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from pybrush_lightning.sisa import SISA

T = TypeVar("T")


@dataclass
class LightningLearner:
    """A Trainer, a module and a loader, as the core sees them.

    Attributes:
        trainer: the user's trainer.
        module: the user's module.
        sisa: the callback on the trainer; it is told which stage runs.
        plan: the user's training loader, taken apart.
        limits: when the user's training ends and validates.
        run_fit: runs trainer.fit around a build, for a learner outside of a fit; None inside one.
        validation: returns the user's validation loaders, asked where their content steers training.
        counters: where training stands.
        datamodule: the user's data module, which configure_optimizers may ask.
    """

    trainer: Trainer
    module: LightningModule
    sisa: SISA
    plan: LoaderPlan
    limits: Limits
    run_fit: Callable[[Callable[[], Any]], Any] | None = None
    validation: Callable[[], Any] = lambda: None
    counters: Counters = field(default_factory=lambda: Counters(0, 0, 0))
    datamodule: Any = None
    _optimization: dict[str, Any] | None = field(default=None, repr=False)
    _hidden: Hidden | None = field(default=None, repr=False)
    _probed: dict[str, Any] | None = field(default=None, repr=False)
    _semantic: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def read_state(self) -> Any:
        """Return module, callbacks and counters, and the optimization of the stage that ran last."""
        return {
            "module": state.read_module(self.module),
            "callbacks": state.read_callbacks(self.trainer, self.module),
            "optimization": copy.deepcopy(self._optimization) or state.read_start(self.trainer),
            "counters": [self.counters.epochs, self.counters.steps, self.counters.batches],
        }

    def write_state(self, tree: Any) -> None:
        """Put module and callbacks back; the optimization waits for the stage that goes on from it."""
        state.write_module(self.module, tree["module"])
        state.write_callbacks(self.trainer, self.module, tree["callbacks"])
        self._optimization = tree["optimization"]
        self.counters = Counters(*tree["counters"])

    def train_stage(
        self, data: LoaderPlan, rows: Callable[[int], Positions], horizon: Horizon, seeds: Seeds
    ) -> Trained:
        """Run one fresh fit loop on the user's trainer over the stage's rows."""
        trainer, start = self.trainer, self.counters
        share = Share(trainer.global_rank, trainer.world_size)
        loop = stage_loop(trainer, self.limits, horizon, seeds, start)
        loader = stage_loader(data, rows, horizon, seeds, share)
        _private.set_train_source(loop, loader)
        before = self._beside()
        begin_anew(trainer, horizon)
        in_stage = self.limits.in_stage(trainer, len(loader))
        with in_stage, installed(trainer, loop), self.sisa.in_stage(trainer, horizon) as meter:
            self._make_optimization(seeds)
            loop.run()
            self._optimization = copy.deepcopy(state.read_optimization(trainer))
        # Epochs are those of the plan: a stage that Lightning stopped early counts in full.
        done = counters(loop)
        self.counters = Counters(horizon.epochs_before + horizon.epochs, done.steps, done.batches)
        found = ranks.agreed(trainer, lambda: before.check(self._beside(), RANDOMNESS, REMEDY))
        notes = meter.notes | ({"assumptions": found} if found else {})
        return Trained(self.counters.steps - start.steps, meter.learning_rate_sum, notes)

    def connect_held_optimization(self) -> None:
        """Let the trainer's optimizers be those of the state that was written last.

        The last stage that was built may be another shard's, and a checkpoint that the user saves now
        holds the optimizers too.
        """
        held = self._optimization or {}
        if "optimizers" not in held:  # an approximate method left the module
            renew(self.trainer.optimizers, self.trainer.lr_scheduler_configs)
        elif self.trainer.optimizers:
            state.write_optimization(self.trainer, copy.deepcopy(held))

    def drop_training(self) -> None:
        """Drop the state of optimizers and schedulers."""
        self._optimization = None

    def session(self, build: Callable[[], T]) -> T:
        """Run a build inside trainer.fit; directly where a fit is already running."""
        if self.run_fit is None:
            return build()
        result: T = self.run_fit(build)
        return result

    def semantic(self, namer: Namer) -> dict[str, Any]:
        """Return the semantic fingerprint; it is taken once under each key."""
        if namer.key_id not in self._semantic:
            self._semantic[namer.key_id] = self._fingerprint(namer)
        return self._semantic[namer.key_id]

    def probe(self) -> dict[str, Any]:
        """Describe what configure_optimizers returns; it is called once for this."""
        if self._probed is None:
            self._probed = self._probe()
        return self._probed

    def environment(self) -> dict[str, Any]:
        """Return versions, device, threads and processor features."""
        return fingerprint.environment(self.trainer, self.module)

    def _make_optimization(self, seeds: Seeds) -> None:
        """Make fresh optimizers for a stage, in the state of its parent."""
        trainer = self.trainer
        trainer.should_stop = False
        _private.reset_metrics(trainer)
        seed_all(seeds(0, "stage"))  # on all ranks alike: an optimizer drawn for each would let weights drift apart
        _private.set_up_optimizers(trainer)
        renew(trainer.optimizers, trainer.lr_scheduler_configs)
        if trainer.global_rank:
            seed_all(seeds(0, "stage", trainer.global_rank))
        # Before they go on from the parent's state: the check steps through the whole horizon.
        self._check_schedulers(trainer.lr_scheduler_configs)
        if self._optimization is not None:
            state.write_optimization(trainer, self._optimization)

    def _check_schedulers(self, configs: list[Any]) -> None:
        """Refuse schedulers that no stage can go on with; those of manual optimization are stepped by the user."""
        if self.module.automatic_optimization:
            check_schedulers(configs, self.limits)

    def _beside(self) -> Beside:
        """Return digests of what no stage stores, to be compared after one."""
        if self._hidden is None:
            own = [("module", self.module), *state.stateful_callbacks(self.trainer)]
            self._hidden = Hidden([*reading(self.plan.loader), *own], KINDS)
        hyperparameters = fingerprint.hyperparameters(self.module)
        digests = {f"module.hparams.{name}": repr(value) for name, value in hyperparameters.items()}
        return Beside(
            opaque=digests | state.opaque(self.trainer, self.module),
            rows=fingerprint_of_rows(self.plan.dataset, self.sisa.naming.reader, RANDOMNESS),
            generators=self._hidden.generators(),
            values=self._hidden.values(),
        )

    def _fingerprint(self, namer: Namer) -> dict[str, Any]:
        trainer, optimization = self.trainer, self.probe()
        found: dict[str, Any] = fingerprint.semantic(trainer, self.module, self.plan.loader, optimization)
        found["trainer"] |= self.limits.recorded()
        found["loader"] = self.plan.settings()
        found["workers"] = fingerprint.worker_init(self.plan.loader) if self.plan.workers else None
        if self._is_steered(optimization):
            with self._at_start():
                loaders = self.validation()
            data = "none" if loaders is None else fingerprint.validation_digest(loaders, namer)
            found["validation"] = {"data": data}
        return found

    def _is_steered(self, optimization: dict[str, Any]) -> bool:
        """Whether something monitors the validation data, or may: schedulers that are stepped by hand."""
        by_hand = not self.module.automatic_optimization
        monitors = any(scheduler["monitor"] or by_hand for scheduler in optimization["schedulers"])
        callbacks = [callback for _, callback in state.stateful_callbacks(self.trainer)]
        return monitors or any("EarlyStopping" in _private.ancestors(callback) for callback in callbacks)

    @contextmanager
    def _at_start(self) -> Iterator[None]:
        """Let the trainer stand where the training of a shard begins, with all the data; nothing is trained."""
        whole = Horizon(0, 0, self.limits.horizon, 0, self.limits.horizon)
        loop = stage_loop(self.trainer, self.limits, whole, Seeds(0, 0, 0), Counters(0, 0, 0))
        _private.set_train_source(loop, self.plan.loader)
        in_stage = self.limits.in_stage(self.trainer, len(self.plan.loader))
        with kept_randomness(), in_stage, installed(self.trainer, loop):
            yield

    def _probe(self) -> dict[str, Any]:
        """Call configure_optimizers once, outside of training, and describe what it returns."""
        trainer, module = self.trainer, self.module
        before = trainer.state.fn
        known = known_parts(module)
        attributes = plain_attributes(module, known)
        with self._at_start(), _private.attached(trainer, module, self.datamodule):
            trainer.state.fn = TrainerFn.FITTING
            seed_all(0)  # whatever it draws must be the same in every process
            try:
                optimizers, configs = _private.make_optimizers(trainer, module)
                with renewed(optimizers, configs):
                    self._check_schedulers(configs)
                    return fingerprint.describe_optimization(optimizers, configs)
            finally:
                trainer.state.fn = before
                write_attributes(module, attributes, known)
