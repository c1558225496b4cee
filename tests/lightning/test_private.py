"""One canary for each private name of Lightning that PyBrush uses: it fails where a new version changed it."""

import copy
import importlib
import inspect

import lightning
import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader

from pybrush_lightning import SISA, _private
from tests.lightning.models import Net, OtherNet, Rows

PACKAGES = {"lightning": (lightning, Net), "pytorch_lightning": (pytorch_lightning, OtherNet)}
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


@pytest.fixture(params=PACKAGES, scope="module")
def fitted(request, tmp_path_factory):
    """A plain trainer after a fit of two epochs, with its module."""
    package, make = PACKAGES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    trainer, module = package.Trainer(max_epochs=2, default_root_dir=folder, **QUIET), make()
    trainer.fit(module, DataLoader(Rows(), batch_size=5, shuffle=True))
    return trainer, module


def test_the_class_of_the_fit_loop_takes_trainer_and_epochs(fitted):
    trainer, _ = fitted
    kind = type(trainer.fit_loop)
    assert kind.__name__ == "_FitLoop"
    assert list(inspect.signature(kind).parameters) == ["trainer", "min_epochs", "max_epochs"]
    assert {"run", "done", "on_advance_start", "setup_data", "teardown"} <= set(dir(kind))


def test_the_sources_of_data_have_an_instance_that_can_be_set(fitted):
    trainer, module = fitted
    source = _private.train_source(trainer)
    assert source is trainer.fit_loop._data_source
    assert isinstance(source.instance, DataLoader) and not source.is_module() and source.is_defined()
    assert _private.validation_source(trainer).instance is module
    loop = type(trainer.fit_loop)(trainer)
    _private.set_train_source(loop, "a loader")
    assert loop._data_source.dataloader() == "a loader"


def test_the_validation_loop_runs_inside_the_epoch_loop(fitted):
    assert callable(fitted[0].fit_loop.epoch_loop.val_loop.run)


def test_progress_is_read_where_training_left_it_and_can_be_set(fitted):
    trainer, _ = fitted
    assert _private.progress(trainer.fit_loop) == (2, 18, 18)
    assert (trainer.current_epoch, trainer.global_step) == (2, 18)
    loop = type(trainer.fit_loop)(trainer)
    _private.set_progress(loop, 5, 40, 41)
    assert _private.progress(loop) == (5, 40, 41)
    assert _private.log_step(loop) == loop.epoch_loop._batches_that_stepped == 40
    _private.set_log_step(loop, 90)
    assert _private.log_step(loop) == 90 and _private.progress(loop) == (5, 40, 41)
    assert loop.epoch_loop.automatic_optimization.optim_progress.optimizer_steps == 40
    assert loop.epoch_progress.current.completed == loop.epoch_progress.total.completed == 5


def test_metrics_can_be_kept_apart(fitted):
    trainer, _ = fitted
    before = dict(trainer.callback_metrics)
    with _private.metrics_apart(trainer):
        assert not trainer.callback_metrics and not trainer.logged_metrics and not trainer.progress_bar_metrics
        trainer._logger_connector.callback_metrics["other"] = 1
    assert dict(trainer.callback_metrics) == before != {}


def test_metrics_can_be_forgotten(fitted):
    trainer, _ = fitted
    assert trainer.callback_metrics
    trainer.training = True
    _private.reset_metrics(trainer)
    trainer.training = False
    assert not trainer.callback_metrics


def test_a_checkpoint_is_announced_before_it_is_read(fitted):
    trainer, _ = fitted
    asked = []

    def check(path):
        asked.append(path)
        return path if len(asked) == 1 else None

    with _private.checkpoints_checked(trainer, check):
        trainer._checkpoint_connector.resume_start(None)
        assert asked == []
        with pytest.raises(FileNotFoundError):
            trainer._checkpoint_connector.resume_start("no-such-file.ckpt")
        trainer._checkpoint_connector.resume_start("passed-over.ckpt")
        assert trainer.ckpt_path is None
    assert asked == ["no-such-file.ckpt", "passed-over.ckpt"]
    assert "resume_start" not in vars(trainer._checkpoint_connector)
    assert trainer._checkpoint_connector._loaded_checkpoint == {}


def test_the_last_checkpoint_is_looked_for_where_we_say_too(fitted, tmp_path):
    trainer, _ = fitted
    kind = next(kind for kind in _private.checkpoint_classes() if isinstance(trainer.checkpoint_callback, kind))
    own = type("Own", (kind,), {"_find_last_checkpoints": kind._find_last_checkpoints.__wrapped__})
    _private.extend_last_checkpoints(own, lambda callback, trainer: {callback.dirpath})
    once = own._find_last_checkpoints
    _private.extend_last_checkpoints(own, lambda callback, trainer: {"twice"})
    assert own._find_last_checkpoints is once
    (tmp_path / "last.ckpt").touch()
    here, found = str(tmp_path), own(tmp_path)._find_last_checkpoints(trainer)
    assert found == {here, str(tmp_path / "last.ckpt")}


def test_optimizers_can_be_made_aside_and_connected(fitted):
    trainer, module = fitted
    before = _private.optimization(trainer)
    with _private.attached(trainer, module):
        optimizers, configs = _private.make_optimizers(trainer, module)
    assert type(optimizers[0]) is torch.optim.SGD and configs == []
    assert trainer.optimizers is before[0]
    _private.connect_optimization(trainer, optimizers, configs)
    assert trainer.optimizers is optimizers
    _private.connect_optimization(trainer, *before)


def test_optimizers_can_be_set_up_anew(fitted):
    trainer, _ = fitted
    before = _private.optimization(trainer)
    _private.set_up_optimizers(trainer)
    assert trainer.optimizers[0] is not before[0][0]
    _private.connect_optimization(trainer, *before)


def test_settings_of_ddp_are_read_from_the_strategy():
    for package, _ in PACKAGES.values():
        trainer = package.Trainer(strategy="ddp_find_unused_parameters_true", devices=2, **QUIET)
        assert _private.is_ddp(trainer) and _private.ddp_settings(trainer) == {"find_unused_parameters": True}
        assert _private.ddp_extras(trainer) == [] and not _private.spawns(trainer)
        synced = package.Trainer(strategy="ddp_spawn", devices=2, sync_batchnorm=True, **QUIET)
        assert _private.spawns(synced) and _private.ddp_extras(synced) == ["sync_batchnorm"]
        plain = package.Trainer(**QUIET)
        assert not _private.is_ddp(plain) and not _private.spawns(plain)


def test_ddp_wraps_the_module_in_a_method_that_can_be_called_again(fitted):
    strategies = importlib.import_module(f"{type(fitted[0]).__module__.split('.trainer')[0]}.strategies")
    assert list(inspect.signature(strategies.DDPStrategy.configure_ddp).parameters) == ["self"]
    assert "_setup_model" in inspect.getsource(strategies.DDPStrategy.configure_ddp)


def test_loaders_can_keep_their_samplers_on_every_rank(fitted):
    connector = fitted[0]._accelerator_connector
    assert connector.use_distributed_sampler
    with _private.samplers_kept(fitted[0]):
        assert not connector.use_distributed_sampler
    assert connector.use_distributed_sampler
    assert "use_distributed_sampler" in inspect.getsource(fitted[0]._data_connector._requires_distributed_sampler)


def test_what_spawned_processes_leave_is_announced_once_and_only_after_a_fit(fitted):
    name = f"{type(fitted[0]).__module__.split('.trainer')[0]}.strategies.launchers"
    launcher = importlib.import_module(name)._MultiProcessingLauncher
    recover = launcher._recover_results_in_main_process
    assert recover.tells_sisa
    original = inspect.signature(recover).parameters["original"].default
    assert list(inspect.signature(original).parameters) == ["self", "worker_output", "trainer"]
    _private.wrap_recovery(print)
    assert launcher._recover_results_in_main_process is recover


def test_a_module_is_attached_and_detached_with_its_parts(fitted):
    trainer, module = fitted
    other = type(module)()
    other.inner = type(module)()
    with _private.attached(trainer, other, "some data"):
        assert other.trainer is other.inner.trainer is trainer
        assert trainer.lightning_module is other and trainer.datamodule == "some data"
    assert other._trainer is other.inner._trainer is trainer.datamodule is None
    assert _private.connected_module(trainer) is module
    assert copy.deepcopy(module)._trainer is None


def test_the_checkpoint_callback_has_the_attributes_that_a_stage_resets(fitted):
    callback = fitted[0].checkpoint_callback
    names = [
        *("best_k_models", "kth_best_model_path", "best_model_score", "best_model_path", "last_model_path"),
        *("current_score", "kth_value", "_last_global_step_saved", "_last_checkpoint_saved", "_last_time_checked"),
        *("dirpath", "_defer_save_until_validation"),
    ]
    assert set(names) <= vars(callback).keys()
    fresh = type(callback)()
    used = {name: getattr(callback, name) for name in names}
    _private.reset_checkpoint_callback(callback)
    for name in names[:-2] + names[-1:]:
        assert str(getattr(callback, name)) == str(getattr(fresh, name)), name
    vars(callback).update(used)


def test_internal_attributes_are_those_of_a_bare_module(fitted):
    _, module = fitted
    assert vars(type(module)()).keys() - _private.INTERNAL_ATTRIBUTES == {"optimizer", "scheduler"}
    assert vars(module).keys() - _private.INTERNAL_ATTRIBUTES == {"optimizer", "scheduler"}
    assert {"_trainer", "_hparams", "_fabric", "_parameters", "training"} <= _private.INTERNAL_ATTRIBUTES


def test_a_rich_bar_takes_its_metrics_over_when_it_is_told(fitted):
    trainer, module = fitted
    kinds = importlib.import_module(f"{type(trainer).__module__.split('.trainer')[0]}.callbacks")
    bar, told = kinds.RichProgressBar(), []
    bar._init_progress(trainer)
    try:
        bar.get_metrics = lambda *given: told.append(given) or {"some": "metric"}
        _private.refresh_metrics(bar, trainer)
        _private.refresh_metrics(kinds.TQDMProgressBar(), trainer)
    finally:
        bar.progress.stop()
    assert told == [(trainer, module)] and bar._metric_component._metrics == {"some": "metric"}


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
def test_a_module_without_a_trainer_can_be_traced(fitted):
    holder = torch.nn.Sequential(copy.deepcopy(fitted[1]).eval())
    with pytest.raises(RuntimeError, match="not attached to a `Trainer`"):
        torch.jit.trace(holder, torch.zeros(2, 6))
    _private.let_trace(holder)
    assert torch.equal(torch.jit.trace(holder, torch.zeros(2, 6))(torch.ones(2, 6)), holder(torch.ones(2, 6)))


def test_a_trainer_can_be_given_loggers_that_keep_nothing(fitted):
    trainer, _ = fitted
    logger = _private.silent_logger(trainer)
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.experiment.anything("of", "the", user="s")
    logger.finalize("success")
    package = lightning.pytorch if isinstance(trainer, lightning.Trainer) else pytorch_lightning
    assert isinstance(logger, package.loggers.Logger)


def test_a_time_limit_is_seen(fitted):
    timer = PACKAGES["lightning"][0].pytorch.callbacks.Timer
    assert _private.has_time_limit(timer({"hours": 1})) and not _private.has_time_limit(timer())


def test_trial_runs_are_seen(tmp_path):
    for package, _ in PACKAGES.values():
        assert _private.is_trial_run(package.Trainer(fast_dev_run=True, **QUIET))
        assert _private.is_trial_run(package.Trainer(overfit_batches=1, default_root_dir=tmp_path, **QUIET))
        assert not _private.is_trial_run(package.Trainer(default_root_dir=tmp_path, **QUIET))
        callbacks = package.pytorch.callbacks if package is lightning else package.callbacks
        finder = callbacks.LearningRateFinder()
        trainer = package.Trainer(default_root_dir=tmp_path, callbacks=[finder], **QUIET)
        assert not _private.is_trial_run(trainer)
        assert finder._early_exit is callbacks.BatchSizeFinder()._early_exit is False
        finder._early_exit = True  # as a Tuner sets it
        assert _private.is_trial_run(trainer)


def test_validation_by_the_clock_is_seen(tmp_path):
    for package, _ in PACKAGES.values():
        quiet = {"default_root_dir": tmp_path, **QUIET}
        assert _private.validates_by_the_clock(package.Trainer(val_check_interval="00:00:01:00", **quiet))
        assert not _private.validates_by_the_clock(package.Trainer(val_check_interval=3, **quiet))


def test_reloading_of_data_is_where_a_stage_turns_it(fitted):
    trainer, _ = fitted
    validation = trainer.fit_loop.epoch_loop.val_loop
    assert isinstance(type(validation)._should_reload_val_dl, property) and callable(validation.setup_data)
    before = validation._last_val_dl_reload_epoch
    _private.forget_validation_reload(trainer)
    assert validation._last_val_dl_reload_epoch == float("-inf")
    validation._last_val_dl_reload_epoch = before


def test_early_stopping_has_the_attributes_that_a_stage_resets(fitted):
    kind = next(c for c in PACKAGES if type(fitted[0]).__module__.startswith(c))
    package = PACKAGES[kind][0]
    make = (package.pytorch if package is lightning else package).callbacks.EarlyStopping
    for mode in ("min", "max"):
        used, fresh = make("loss", mode=mode), make("loss", mode=mode)
        used._evaluate_stopping_criteria(torch.tensor(1.0))
        used.load_state_dict({**used.state_dict(), "wait_count": 2, "stopped_epoch": 3, "stopping_reason": 1})
        used.stopping_reason_message = "it stopped"
        assert all(used.state_dict()[name] != value for name, value in fresh.state_dict().items() if name != "patience")
        _private.reset_early_stopping(used)
        assert used.state_dict() == fresh.state_dict()


def test_progress_of_manual_optimization_can_be_set(fitted):
    trainer, module = fitted
    loop = type(trainer.fit_loop)(trainer)
    _private.set_progress(loop, 1, 40, 20)
    assert loop.epoch_loop.manual_optimization.optim_step_progress.total.completed == 40
    module.automatic_optimization = False
    _private.set_progress(loop, 1, 40, 20)
    assert loop.epoch_loop.global_step == 40 and loop.epoch_loop._batches_that_stepped == 20
    module.automatic_optimization = True


def test_a_compiled_module_has_its_steps_where_they_are_looked_for():
    for _, make in PACKAGES.values():
        module = make()
        assert _private.compiled_steps(module) == ()
        wrapped = torch.compile(module, backend="eager")
        assert _private.module_below(wrapped) is _private.module_below(module) is module
        before = set(vars(module))
        _private.compile_steps(wrapped)
        assert set(vars(module)) - before == set(_private.compiled_steps(module))
        assert {"_is_torch_compile", "_compile_kwargs", "_compiler_ctx"} <= vars(module).keys()


def test_classes_are_told_apart_by_where_they_come_from():
    class ModelCheckpoint:
        """The user's own."""

    assert _private.ancestors(ModelCheckpoint()) == set()
    for package, _ in PACKAGES.values():
        callbacks = package.pytorch.callbacks if package is lightning else package.callbacks
        assert "ModelCheckpoint" in _private.ancestors(callbacks.ModelCheckpoint())
        assert "EarlyStopping" in _private.ancestors(type("Own", (callbacks.EarlyStopping,), {})("loss"))
    assert _private.own_hook(Net(), "training_step") is not None
    assert _private.own_hook(Net(), "train_dataloader") is None


def test_both_packages_accept_the_callback():
    sisa = SISA(record="nowhere")
    for package, _ in PACKAGES.values():
        base = package.pytorch.Callback if package is lightning else package.Callback
        assert isinstance(sisa, base)
    assert _private.trainer_classes() == [lightning.pytorch.Trainer, pytorch_lightning.Trainer]
    assert _private.module_classes() == (lightning.pytorch.LightningModule, pytorch_lightning.LightningModule)
