"""The models of the shipped configuration: two small classifiers that know nothing of PyBrush.

Evaluation goes through `self(...)`, so that the aggregate can answer. Guide: docs/pitfalls.md.
"""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
"""Inputs, float32, shape (b, ...), and labels, int64, shape (b,)."""


class Classifier(LightningModule):
    """A network that returns logits, trained by cross-entropy with Adam.

    Args:
        network: takes inputs and returns logits, shape (b, classes).
        learning_rate: of Adam.
        weight_decay: of Adam.
    """

    def __init__(self, network: nn.Module, learning_rate: float, weight_decay: float) -> None:
        super().__init__()
        self.network = network
        self.learning_rate, self.weight_decay = learning_rate, weight_decay

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits, shape (b, classes)."""
        logits: Tensor = self.network(inputs)
        return logits

    def training_step(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        inputs, labels = batch
        return nn.functional.cross_entropy(self(inputs), labels)

    def validation_step(self, batch: Batch) -> None:
        """Log loss and accuracy."""
        self._evaluate(batch, "validation")

    def test_step(self, batch: Batch) -> None:
        """Log loss and accuracy."""
        self._evaluate(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam over all parameters."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)

    def _evaluate(self, batch: Batch, prefix: str) -> None:
        inputs, labels = batch
        logits = self(inputs)
        found = {
            f"{prefix}/loss": nn.functional.cross_entropy(logits, labels),
            f"{prefix}/accuracy": (logits.argmax(dim=-1) == labels).float().mean(),
        }
        # Lightning weighs the mean over batches by this, which counts where the last one is short.
        self.log_dict(found, batch_size=len(labels), prog_bar=True)


class MLP(Classifier):
    """A perceptron with one hidden layer, BatchNorm and dropout; it flattens its inputs.

    Args:
        inputs: numbers in a sample.
        hidden: width of the hidden layer.
        classes: number of classes.
        dropout: share of hidden units that are dropped.
        learning_rate: of Adam.
        weight_decay: of Adam.

    Example:
        >>> MLP(inputs=64)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        inputs: int,
        hidden: int = 64,
        classes: int = 10,
        dropout: float = 0.1,
        learning_rate: float = 0.01,
        weight_decay: float = 0.0,
    ) -> None:
        layers = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )  # fmt: skip
        super().__init__(layers, learning_rate, weight_decay)
        self.save_hyperparameters()


class SmallCNN(Classifier):
    """Two convolutions with BatchNorm and two layers with dropout, for one-channel images of 28 x 28 pixels.

    Strides instead of pooling, which takes a third of the time on a CPU. With ten classes it has 103,194 parameters.

    Args:
        classes: number of classes.
        dropout: share of hidden units that are dropped.
        learning_rate: of Adam.
        weight_decay: of Adam.

    Example:
        >>> SmallCNN()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, classes: int = 10, dropout: float = 0.25, learning_rate: float = 0.002, weight_decay: float = 0.0
    ) -> None:
        layers = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * 7 * 7, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, classes),
        )  # fmt: skip
        super().__init__(layers, learning_rate, weight_decay)
        self.save_hyperparameters()
