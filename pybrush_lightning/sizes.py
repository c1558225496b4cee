"""What a training will be made for, read from objects that were built and before any of them is trained."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pybrush.errors import ConfigurationError
from pybrush.plan.forecast import Sizes
from pybrush_lightning.serving import sisa_of

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, LightningModule, Trainer


def sizes_of(trainer: Trainer, module: LightningModule, data: LightningDataModule) -> Sizes:
    """Return samples, shards, slices, epochs and the bytes of a stage of a fit.

    Raises:
        ConfigurationError: where there is no SISA callback, or rows cannot be counted.
    """
    sisa = sisa_of(trainer)
    recorded = None if sisa.shards is not None else sisa.recorded()
    return Sizes(
        samples=_rows(data),
        shards=sisa.shards or (recorded.plan.shards if recorded is not None else 1),
        slices=sisa.slice_count(),
        epochs=trainer.max_epochs,  # type: ignore[arg-type]  # None is refused with the rest
        stage_bytes=_stage_bytes(module),
        has_subjects=sisa.naming.subjects is not None,
    )


def _rows(data: LightningDataModule) -> int:
    data.prepare_data()
    data.setup("fit")
    dataset: Any = getattr(data.train_dataloader(), "dataset", None)
    if not hasattr(dataset, "__len__"):
        raise ConfigurationError(
            "the rows of a plan are those of one training loader over a map-style data set; the data module's "
            f"train_dataloader() is over {type(dataset).__name__}. Give bare numbers instead: samples=..."
        )
    return len(dataset)


def _stage_bytes(module: LightningModule) -> int | None:
    """Return the bytes of parameters, buffers and two moments of what is trained; None where none are made yet."""
    parameters = list(module.parameters())
    tensors = list(chain(parameters, module.buffers()))
    if not parameters or any(torch.nn.parameter.is_lazy(tensor) for tensor in tensors):
        return None
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return sum(map(_bytes, tensors)) + 2 * sum(map(_bytes, trained))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
