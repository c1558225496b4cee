"""What a refusal must leave as it was: record, key, root folder, module, trainer, loaders, random state, loggers."""

import random
from contextlib import contextmanager

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import Logger

from pybrush.record import states
from pybrush_lightning import state
from pybrush_lightning._private import INTERNAL_ATTRIBUTES
from tests.untouched import untouched

SETTINGS = [
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "max_epochs"),
    *("max_steps", "min_steps", "limit_train_batches", "limit_val_batches", "val_check_interval"),
    *("check_val_every_n_epoch", "reload_dataloaders_every_n_epochs", "precision", "log_every_n_steps"),
]


KEPT = ["best_k_models", "best_model_path", "last_model_path", "kth_best_model_path", "_last_global_step_saved"]
"""What a ModelCheckpoint knows of its files; the rest Lightning sets when a fit begins."""


def module_state(module):
    """Return all of a module that a refusal must leave as it was, by name."""
    return {
        "module": states.init_digest(state.read_module(module)),
        "gradients": [None if p.grad is None else p.grad.tolist() for p in module.parameters()],
        "trainable": [p.requires_grad for p in module.parameters()],
        "modes": [part.training for part in module.modules()],
        "attributes": sorted(vars(module).keys() - INTERNAL_ATTRIBUTES),
        "hooks": [
            (list(part._forward_pre_hooks), list(part._forward_hooks), "forward" in vars(part))
            for part in module.modules()
        ],
    }


def random_state():
    """Return the states of all global generators."""
    numpy = np.random.get_state()  # noqa: NPY002
    return {"random": (random.getstate(), numpy[1].tolist(), numpy[2:], torch.get_rng_state().tolist())}


def callback_states(trainer, module):
    """Return the states of all callbacks but of those that note what is called, which are looked at by themselves."""
    held = state.read_callbacks(trainer, module)
    return {name: one for name, one in held.items() if not name.startswith("Listening")}


def trainer_state(trainer, module):
    """Return all of a trainer that a refusal must leave as it was, by name."""
    loop, callbacks = trainer.fit_loop, trainer.callbacks
    return {
        "settings": [getattr(trainer, name, None) for name in SETTINGS],
        "callbacks": sorted(map(id, callbacks)),
        "callback states": states.init_digest(callback_states(trainer, module)),
        "checkpoints": [{name: vars(c).get(name) for name in KEPT} for c in trainer.checkpoint_callbacks],
        "loop": (id(loop), loop.max_epochs, sorted(vars(loop)), sorted(vars(loop.epoch_loop.val_loop))),
        "connector": sorted(vars(trainer._checkpoint_connector)),
        "optimizers": [(id(o), str(o.state_dict())) for o in trainer.optimizers],
        "schedulers": [(id(c.scheduler), str(c.scheduler.state_dict())) for c in trainer.lr_scheduler_configs],
        "counters": (trainer.current_epoch, trainer.global_step, str(loop.state_dict())),
        "metrics": sorted(trainer.logged_metrics),
    }


def connections(trainer, module):
    """Return what no fit leaves as it was, since Lightning has begun it: to what a trainer is connected, and so on."""
    loop = trainer.fit_loop
    sources = (loop._data_source.instance, loop.epoch_loop.val_loop._data_source.instance)
    return {
        "data": (*map(id, sources), id(loop._combined_loader), id(vars(trainer).get("datamodule"))),
        "connected": (id(trainer.strategy._lightning_module), id(module._trainer)),
        "running": (trainer.state.fn, trainer.state.status, trainer.should_stop, trainer.min_epochs),
        "order": list(map(id, trainer.callbacks)),
        "checkpointing": [{name: str(value) for name, value in vars(c).items()} for c in trainer.checkpoint_callbacks],
    }


class Listening(lightning.Callback):
    """Notes every hook that is called on it."""

    def __init__(self):
        self.heard = []


def _noting(name):
    def hook(self, *_, **__):
        self.heard.append(name)

    return hook


for _name in [n for n in dir(lightning.Callback) if n.startswith("on_") or n in ("setup", "teardown")]:
    setattr(Listening, _name, _noting(_name))


class CallsNoted(Logger):
    """A logger that notes what it is asked."""

    name, version = "calls", 0

    def __init__(self):
        super().__init__()
        self.calls = []

    def log_metrics(self, metrics, step=None):
        self.calls.append("log_metrics")

    def log_hyperparams(self, params, *args, **kwargs):
        self.calls.append("log_hyperparams")

    def save(self):
        self.calls.append("save")

    def finalize(self, status):
        self.calls.append("finalize")


@contextmanager
def by_request(trainer, module, *places):
    """Let a block pass only if a request in it leaves everything as it was, and runs nothing of the framework."""
    listening = [callback for callback in trainer.callbacks if isinstance(callback, Listening)]
    loggers = [logger for logger in trainer.loggers if isinstance(logger, CallsNoted)]

    def read():
        ran = {"hooks called": [c.heard[:] for c in listening], "logger calls": [x.calls[:] for x in loggers]}
        own = module_state(module) | trainer_state(trainer, module) | connections(trainer, module)
        return own | random_state() | ran

    with untouched(*places, read=read):
        yield


@contextmanager
def by_fit(trainer, module, *places):
    """The same for a fit, which Lightning has begun before anything can be refused: it has connected the module."""
    with untouched(*places, read=lambda: module_state(module) | trainer_state(trainer, module) | random_state()):
        yield
