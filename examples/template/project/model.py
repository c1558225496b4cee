"""A dense network and the module that trains it; network, optimizer and scheduler come from the configuration."""

from lightning import LightningModule
from torch import nn
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.classification import MulticlassAccuracy


class DenseNet(nn.Module):
    """Two hidden layers with BatchNorm."""

    def __init__(self, inputs=784, widths=(128, 64), classes=10):
        super().__init__()
        sizes, layers = [inputs, *widths], []
        for size, width in zip(sizes, widths, strict=False):
            layers += [nn.Linear(size, width), nn.BatchNorm1d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], classes))

    def forward(self, images):
        return self.layers(images.flatten(1))


class Classifier(LightningModule):
    """Trains a network by cross-entropy and keeps metrics of all three phases."""

    def __init__(self, net, optimizer, scheduler, classes=10):
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["net"])
        self.net = net
        self.criterion = nn.CrossEntropyLoss()
        phases = ("train", "val", "test")
        self.losses = nn.ModuleDict({f"{phase}_loss": MeanMetric() for phase in phases})
        self.accuracies = nn.ModuleDict(
            {f"{phase}_acc": MulticlassAccuracy(classes, average="micro") for phase in phases}
        )
        self.best = MaxMetric()

    def forward(self, images):
        return self.net(images)

    def on_train_start(self):
        # The sanity check has already filled these.
        self.losses["val_loss"].reset()
        self.accuracies["val_acc"].reset()
        self.best.reset()

    def training_step(self, batch, index):
        return self.step(batch, "train")

    def validation_step(self, batch, index):
        self.step(batch, "val")

    def on_validation_epoch_end(self):
        self.best(self.accuracies["val_acc"].compute())
        self.log("val/acc_best", self.best.compute(), prog_bar=True)

    def test_step(self, batch, index):
        self.step(batch, "test")

    def step(self, batch, phase):
        images, digits = batch
        logits = self.forward(images)
        loss = self.criterion(logits, digits)
        mean, accuracy = self.losses[f"{phase}_loss"], self.accuracies[f"{phase}_acc"]
        mean(loss.detach(), weight=len(digits))
        accuracy(logits, digits)
        self.log(f"{phase}/loss", mean, on_step=False, on_epoch=True)
        self.log(f"{phase}/acc", accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self):
        optimizer = self.hparams.optimizer(params=self.trainer.model.parameters())
        scheduler = self.hparams.scheduler(optimizer=optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}
