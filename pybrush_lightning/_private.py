"""Every private name of Lightning that PyBrush uses, in one place (lightning >=2.6,<2.7).

Each has a canary test. `lightning.pytorch` and `pytorch_lightning` are different classes with the same
shape, so everything is reached from the instances at hand, never by isinstance on a trainer.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning_utilities.core import rank_zero
from torch._dynamo import OptimizedModule

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    CallbackBase = Callback
else:

    def _callback_base() -> type:
        """Return a base that the trainers of both Lightning packages accept as a callback."""
        if importlib.util.find_spec("pytorch_lightning") is None:
            return Callback
        # Importing it moves Lightning's messages to another logger, past what the user has set for the first.
        log = rank_zero.log
        other = importlib.import_module("pytorch_lightning").Callback
        rank_zero.log = log
        return type("CallbackBase", (Callback, other), {})

    CallbackBase = _callback_base()

INTERNAL_ATTRIBUTES = frozenset(vars(LightningModule())) | {
    "_hparams", "_hparams_name", "_hparams_initial", "_log_hyperparams", "trainer", "prepare_data_per_node",
    "_is_torch_compile", "_compile_kwargs",
}  # fmt: skip
"""Attributes of a module that belong to Lightning or torch; their state is stored by other means."""

COMPILER_CONTEXT = "_compiler_ctx"
"""Where Lightning notes that a module was given to torch.compile."""

_PREFIXES = ("lightning.", "pytorch_lightning.")


def trainer_classes() -> list[type]:
    """Return the Trainer classes of the Lightning packages that are installed."""
    return [package.Trainer for package in _packages()]


def module_classes() -> tuple[type, ...]:
    """Return the LightningModule classes of the Lightning packages that are installed."""
    return tuple(package.LightningModule for package in _packages())


def _packages() -> list[Any]:
    names = ("lightning.pytorch", "pytorch_lightning")
    return [importlib.import_module(name) for name in names if importlib.util.find_spec(name.split(".")[0])]


def ancestors(item: Any) -> set[str]:
    """Return the names of the classes of Lightning, of either package, and PyBrush that an object descends from."""
    ours = (*_PREFIXES, "pybrush_lightning.")
    return {kind.__name__ for kind in type(item).__mro__ if kind.__module__.startswith(ours)}


def own_hook(owner: Any, name: str) -> Any:
    """Return a hook that the user's class defines itself, bound; None where it does not."""
    defined = getattr(type(owner), name, None)
    return None if defined is None or defined.__module__.startswith(_PREFIXES) else getattr(owner, name)


def compiled_steps(module: Any) -> tuple[str, ...]:
    """Return the names of the compiled functions that Lightning has put on a module given to torch.compile."""
    if vars(module).get(COMPILER_CONTEXT) is None:
        return ()
    return ("forward", "training_step", "validation_step", "test_step", "predict_step")


def module_below(model: Any) -> Any:
    """Return the module that torch.compile(module) wraps; any other object as it is."""
    return model._orig_mod if isinstance(model, OptimizedModule) else model


def compile_steps(model: OptimizedModule) -> None:
    """Put compiled steps on the module that torch.compile wraps, as a trainer's fit does."""
    module: Any = model._orig_mod
    package = next(p for p in _packages() if isinstance(module, p.LightningModule))
    importlib.import_module(f"{package.__name__}.utilities.compile").from_compiled(model)


def has_time_limit(callback: Any) -> bool:
    """Whether a Timer callback ends training."""
    return getattr(callback, "_duration", None) is not None


def is_trial_run(trainer: Trainer) -> bool:
    """Whether the trainer only tries something out: fast_dev_run, overfit_batches, or a Tuner at work."""
    own = vars(trainer)
    tuned = any(getattr(callback, "_early_exit", False) for callback in own["callbacks"])
    return bool(own.get("fast_dev_run") or own.get("overfit_batches")) or tuned


def validates_by_the_clock(trainer: Trainer) -> bool:
    """Whether val_check_interval is a time."""
    return vars(trainer).get("_val_check_time_interval") is not None


def forget_validation_reload(trainer: Trainer) -> None:
    """Let the next validation load its data anew, where reload_dataloaders_every_n_epochs asks for it."""
    trainer.fit_loop.epoch_loop.val_loop._last_val_dl_reload_epoch = float("-inf")


def connected_module(trainer: Trainer) -> LightningModule | None:
    """Return the module that the trainer was last given, without connecting anything."""
    module: LightningModule | None = trainer.strategy._lightning_module
    return module


def let_trace(module: torch.nn.Module) -> None:
    """Let torch.jit.trace read every attribute of a module without a trainer: `trainer` is None, not an error."""
    for part in module.modules():
        if isinstance(part, module_classes()):
            vars(part)["_jit_is_scripting"] = True  # what to_torchscript sets on the class


def train_source(trainer: Trainer) -> Any:
    """Return the object from which the fit loop requests its loader."""
    return trainer.fit_loop._data_source


def set_train_source(loop: Any, loader: Any) -> None:
    """Let a fit loop that was not run yet train from a loader."""
    loop._data_source.instance = loader


def validation_source(trainer: Trainer) -> Any:
    """Return the object from which the validation loop inside a fit requests its loaders."""
    return trainer.fit_loop.epoch_loop.val_loop._data_source


@contextmanager
def checkpoints_checked(trainer: Trainer, check: Callable[[str], str | None]) -> Iterator[None]:
    """Call `check` with the path of each checkpoint that the trainer is about to load, and load what it returns.

    A checkpoint that an earlier call read and, being interrupted, did not release would be loaded without a
    word, so it is released first.
    """
    connector = trainer._checkpoint_connector
    connector._loaded_checkpoint = {}
    start = connector.resume_start

    def checked(checkpoint_path: Any = None, *args: Any, **kwargs: Any) -> None:
        start(check(str(checkpoint_path)) if checkpoint_path else None, *args, **kwargs)

    connector.resume_start = checked  # type: ignore[method-assign]  # on the instance, for one call alone
    try:
        yield
    finally:
        del connector.resume_start


def extend_last_checkpoints(checkpoint_class: Any, more: Callable[[Any, Trainer], set[str]]) -> None:
    """Let ckpt_path="last" also look where `more` says; does nothing the second time."""
    original = checkpoint_class._find_last_checkpoints
    if getattr(original, "asks_sisa", False):
        return

    @functools.wraps(original)
    def find(self: Any, trainer: Trainer) -> set[str]:
        return set(original(self, trainer)) | more(self, trainer)

    find.asks_sisa = True  # type: ignore[attr-defined]
    checkpoint_class._find_last_checkpoints = find


def checkpoint_classes() -> list[Any]:
    """Return the ModelCheckpoint classes of the Lightning packages that are installed."""
    return [package.callbacks.ModelCheckpoint for package in _packages()]


def is_ddp(trainer: Trainer) -> bool:
    """Whether a trainer uses plain DDP, of either package; what derives from it may do something else."""
    return type(trainer.strategy).__name__ == "DDPStrategy"


def ddp_settings(trainer: Trainer) -> dict[str, Any]:
    """Return the arguments that DDP wraps the module with."""
    strategy: Any = trainer.strategy
    return dict(strategy._ddp_kwargs)


def ddp_extras(trainer: Trainer) -> list[str]:
    """Return the settings of a DDP strategy that change how gradients or weights are averaged."""
    strategy: Any = trainer.strategy
    names = {
        "sync_batchnorm": "_layer_sync",
        "ddp_comm_hook": "_ddp_comm_hook",
        "ddp_comm_state": "_ddp_comm_state",
        "ddp_comm_wrapper": "_ddp_comm_wrapper",
        "model_averaging_period": "_model_averaging_period",
    }
    return [name for name, attribute in names.items() if getattr(strategy, attribute) is not None]


def spawns(trainer: Trainer) -> bool:
    """Whether each call of the trainer runs in processes that are made for it and end with it."""
    return type(trainer.strategy.launcher).__name__ == "_MultiProcessingLauncher"


def wrap_recovery(then: Callable[[Trainer], None]) -> None:
    """Call `then` in the process that spawned others, when it has taken over what a fit of theirs left.

    No callback is called there. Does nothing the second time.
    """
    for package in _packages():
        launcher = importlib.import_module(f"{package.__name__}.strategies.launchers")._MultiProcessingLauncher
        original = launcher._recover_results_in_main_process
        if hasattr(original, "tells_sisa"):
            continue

        def recover(self: Any, output: Any, trainer: Trainer, original: Any = original) -> None:
            original(self, output, trainer)
            if trainer.state.fn == "fit":
                then(trainer)

        recover.tells_sisa = True  # type: ignore[attr-defined]
        launcher._recover_results_in_main_process = recover


@contextmanager
def samplers_kept(trainer: Trainer) -> Iterator[None]:
    """Let the trainer take loaders as they are, without a sampler of its own for each process."""
    connector = trainer._accelerator_connector
    before = connector.use_distributed_sampler
    connector.use_distributed_sampler = False
    try:
        yield
    finally:
        connector.use_distributed_sampler = before


def reset_metrics(trainer: Trainer) -> None:
    """Forget logged metrics, so that none of another shard is monitored."""
    trainer._logger_connector.reset_results()
    trainer._logger_connector.reset_metrics()


@contextmanager
def metrics_apart(trainer: Trainer) -> Iterator[None]:
    """Let a trainer log into other metrics for a while; then it has its own again."""
    connector = vars(trainer._logger_connector)
    held = {name: connector[name] for name in ("_progress_bar_metrics", "_logged_metrics", "_callback_metrics")}
    connector.update({name: {} for name in held})
    try:
        yield
    finally:
        connector.update(held)


def _package(trainer: Trainer) -> str:
    return "pytorch_lightning" if type(trainer.fit_loop).__module__.startswith("pytorch_l") else "lightning.pytorch"


def make_optimizers(trainer: Trainer, module: LightningModule) -> tuple[list[Any], list[Any]]:
    """Call configure_optimizers as Lightning does; return optimizers and scheduler configs, connected to nothing."""
    optimizer_module = importlib.import_module(f"{_package(trainer)}.core.optimizer")
    optimizers, configs = optimizer_module._init_optimizers_and_lr_schedulers(module)
    return optimizers, configs


def set_up_optimizers(trainer: Trainer) -> None:
    """Make fresh optimizers and schedulers and connect them to trainer and precision.

    Under DDP the module is wrapped anew before: its first backward pass orders the buckets of gradients, and
    among three ranks or more the order of a sum is in its bits.
    """
    strategy: Any = trainer.strategy
    if is_ddp(trainer):
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()
    trainer.strategy.setup_optimizers(trainer)
    trainer.strategy.setup_precision_plugin()
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None:
        # By identity, which a new optimizer may share with one that an error left unscaled.
        scaler._per_optimizer_states.clear()


def optimization(trainer: Trainer) -> tuple[list[Any], list[Any]]:
    """Return the optimizers and scheduler configs that are connected to a trainer."""
    return trainer.strategy.optimizers, trainer.strategy.lr_scheduler_configs


def connect_optimization(trainer: Trainer, optimizers: list[Any], configs: list[Any]) -> None:
    """Connect optimizers and scheduler configs that `optimization` returned."""
    trainer.strategy.optimizers, trainer.strategy.lr_scheduler_configs = optimizers, configs


@contextmanager
def attached(trainer: Trainer, module: LightningModule, datamodule: Any = None) -> Iterator[None]:
    """Attach a module and its data to a trainer that does not run, and detach them again."""
    strategy, before, data = trainer.strategy, trainer.strategy._lightning_module, vars(trainer)["datamodule"]
    own = {part: part._trainer for part in module.modules() if isinstance(part, module_classes())}
    strategy._lightning_module = module
    module.trainer = trainer
    vars(trainer)["datamodule"] = datamodule if datamodule is not None else data
    try:
        yield
    finally:
        strategy._lightning_module = before
        vars(trainer)["datamodule"] = data
        for part, held in own.items():
            part._trainer = held


def set_progress(loop: Any, epochs: int, steps: int, batches: int) -> None:
    """Let a fit loop stand where `epochs`, optimizer `steps` and `batches` are done."""
    for progress, count in ((loop.epoch_progress, epochs), (loop.epoch_loop.batch_progress, batches)):
        for tracker in (progress.total, progress.current):
            for name in ("ready", "started", "processed", "completed"):
                setattr(tracker, name, count)
    step = loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
    by_hand = loop.epoch_loop.manual_optimization.optim_step_progress
    for total in (step.total, by_hand.total):
        total.ready = total.completed = steps
    module = loop.trainer.lightning_module
    is_manual = module is not None and not module.automatic_optimization
    # Loggers count batches; with several optimizers a batch may make several steps, and none is accumulated.
    loop.epoch_loop._batches_that_stepped = batches if is_manual else steps


def silent_logger(trainer: Trainer) -> Any:
    """Return a logger that keeps nothing, the one of fast_dev_run."""
    return importlib.import_module(f"{_package(trainer)}.loggers.logger").DummyLogger()


def refresh_metrics(bar: Any, trainer: Trainer) -> None:
    """Let a rich bar take over the metrics that it would show until a batch is done; other bars draw none till then."""
    if hasattr(bar, "_update_metrics"):
        bar._update_metrics(trainer, trainer.lightning_module)


def log_step(loop: Any) -> int:
    """Return the step under which loggers get the next row of a fit loop."""
    return int(loop.epoch_loop._batches_that_stepped)


def set_log_step(loop: Any, step: int) -> None:
    """Set the step under which loggers get the next row of a fit loop; nothing else is counted by it."""
    loop.epoch_loop._batches_that_stepped = step


def progress(loop: Any) -> tuple[int, int, int]:
    """Return epochs, optimizer steps and batches that a fit loop has done."""
    epochs = int(loop.epoch_progress.current.processed)
    return epochs, int(loop.epoch_loop.global_step), int(loop.epoch_loop.batch_progress.total.ready)


def reset_early_stopping(callback: Any) -> None:
    """Let an EarlyStopping forget what it saw; whatever a class of the user's adds stays."""
    worst = torch.tensor(torch.inf if callback.mode == "min" else -torch.inf)
    reason = type(callback.stopping_reason).NOT_STOPPED
    fresh = {"wait_count": 0, "stopped_epoch": 0, "best_score": worst, "stopping_reason": reason}
    vars(callback).update(fresh, stopping_reason_message=None)


def reset_checkpoint_callback(callback: Any) -> None:
    """Let a ModelCheckpoint forget what it saved: each stage has its own best files."""
    worst = torch.tensor(float("inf") if callback.mode == "min" else -float("inf"))
    fresh: dict[str, Any] = {
        "best_k_models": {}, "kth_best_model_path": "", "best_model_score": None, "best_model_path": "",
        "last_model_path": "", "current_score": None, "kth_value": worst, "_last_global_step_saved": 0,
        "_last_checkpoint_saved": "", "_last_time_checked": None, "_defer_save_until_validation": False,
    }  # fmt: skip
    for name, value in fresh.items():
        setattr(callback, name, value)
