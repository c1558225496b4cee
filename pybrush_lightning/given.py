"""What a request is served with: the caller's module and data, and the record's settings on the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import GradClipAlgorithmType

from pybrush.errors import ConfigurationError
from pybrush.record.plan import RecordPlan
from pybrush.replaced import replaced
from pybrush_lightning import _private
from pybrush_lightning.around_fit import Given
from pybrush_lightning.compiled import unwrapped
from pybrush_lightning.limits import limits_restored

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def completed(now: Given, before: Given) -> Given:
    """Return the caller's objects; what was not passed is what the fit in this process had.

    Raises:
        ConfigurationError: where the module is not known, or data is passed in two ways.
    """
    has_data = now.train is not None or now.datamodule is not None
    if now.train is not None and now.datamodule is not None:
        raise ConfigurationError("pass train_dataloaders or datamodule, not both.")
    module = unwrapped(now.module) if now.module is not None else before.module
    if module is None:
        raise ConfigurationError("this trainer has fitted nothing in this process; pass model= and the data as to fit.")
    validation = now.validation if now.validation is not None or has_data else before.validation
    if has_data:
        return Given(module, now.train, validation, now.datamodule)
    return Given(module, before.train, validation, before.datamodule)


def loaders(trainer: Trainer, given: Given) -> tuple[Any, Callable[[], Any]]:
    """Return the training loader, and a function that returns the validation loaders when they are asked for.

    They come from what was passed, the data module or the module itself.
    """
    if given.train is not None:
        return given.train, partial(_validation, trainer, given, given.module)
    owner = given.datamodule if given.datamodule is not None else given.module
    if given.datamodule is not None:
        owner.trainer = trainer
        owner.prepare_data()
        owner.setup("fit")
    loader = _hook(trainer, owner, "train_dataloader")
    if loader is None:
        raise ConfigurationError(
            "the training data is not known in this process; pass train_dataloaders= or datamodule=."
        )
    return loader, partial(_validation, trainer, given, owner)


def _validation(trainer: Trainer, given: Given, owner: Any) -> Any:
    """Return the validation loaders: those passed beside a training loader, else those of the owner of the data."""
    if given.train is not None and given.validation is not None:
        return given.validation
    loaders = _hook(trainer, owner, "val_dataloader")
    return given.validation if loaders is None else loaders


def build_module(trainer: Trainer, given: Given) -> None:
    """Let a module that is new in this process build its parts, where its configure_model does."""
    configure = _private.own_hook(given.module, "configure_model")
    if configure is not None:  # Lightning calls it in each of its loops too, so it does nothing the second time
        with _private.attached(trainer, given.module, given.datamodule):
            configure()
    if not any(True for _ in given.module.parameters()):
        raise ConfigurationError(
            f"{type(given.module).__name__} has no parameters yet. If its setup() makes them, call that first: "
            "model.setup('fit'), then unlearn(model=model)."
        )


def _hook(trainer: Trainer, owner: Any, name: str) -> Any:
    """Call a data hook that the user's class defines itself; None where it does not."""
    hook = _private.own_hook(owner, name)
    if hook is None:
        return None
    is_module = isinstance(owner, _private.module_classes())
    with _private.attached(trainer, owner) if is_module else nullcontext():
        return hook()


@contextmanager
def recorded_settings(trainer: Trainer, plan: RecordPlan) -> Iterator[None]:
    """Give the trainer the settings that the record was made with, for the request alone."""
    settings = plan.semantic["trainer"]
    names = ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")
    own = {name: settings[name] for name in names}
    if own["gradient_clip_algorithm"] is not None:
        own["gradient_clip_algorithm"] = GradClipAlgorithmType(own["gradient_clip_algorithm"])
    with replaced(trainer, **own), limits_restored(trainer, settings, plan.epochs):
        yield
