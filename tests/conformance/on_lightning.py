"""The suite's side of Lightning."""

import random
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from pybrush.record import Record
from pybrush_lightning import SISA
from pybrush_lightning._private import INTERNAL_ATTRIBUTES
from pybrush_lightning.sample_ids import roster_of
from tests.conformance.harness import CLASSES, FEATURES, HIDDEN, SWITCH, Setup, Table, initial_weights, table

SEEN = []


class Rows(Dataset):
    """Pairs of inputs and labels."""

    def __init__(self, rows: Table):
        self.x, self.y = torch.from_numpy(rows.x), torch.from_numpy(rows.y)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        return self.x[row], self.y[row]


class Network(lightning.LightningModule):
    """Two dense layers; BatchNorm and Dropout between them in a regular one."""

    def __init__(self, setup: Setup, weights: int):
        super().__init__()
        self.optimizer, self.rate = setup.optimizer, setup.rate
        between = [nn.ReLU()]
        if setup.network == "regular":
            between = [nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Dropout(0.3)]
        self.net = nn.Sequential(nn.Linear(FEATURES, HIDDEN), *between, nn.Linear(HIDDEN, CLASSES))
        with torch.no_grad():
            for own, given in zip(self.dense(), initial_weights(weights), strict=True):
                own.copy_(torch.from_numpy(given.T.copy()))

    def dense(self):
        """Return weight and bias of each dense layer."""
        return [self.net[0].weight, self.net[0].bias, self.net[-1].weight, self.net[-1].bias]

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self):
        if self.optimizer == "adam":
            return torch.optim.Adam(self.parameters(), lr=self.rate)
        momentum = 0.9 if self.optimizer == "momentum" else 0.0
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=momentum)


class Watching(Network):
    """Notes its batches."""

    def training_step(self, batch, index):
        SEEN.append(batch[0][:, 0].numpy().copy())
        return super().training_step(batch, index)


class Validated(Network):
    """Is validated."""

    def validation_step(self, batch, index):
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self(x), y), batch_size=len(y))


class Tripping(lightning.Callback):
    """Passes the places where a test may let things go wrong."""

    def on_train_start(self, trainer, pl_module):
        SWITCH.passing("begin")

    def on_train_epoch_start(self, trainer, pl_module):
        SWITCH.passing("epoch begin")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        SWITCH.passing("batch")

    def on_train_epoch_end(self, trainer, pl_module):
        SWITCH.passing("epoch")

    def on_train_end(self, trainer, pl_module):
        SWITCH.passing("end")


class LightningTraining:
    """A trainer, a module and a loader."""

    def __init__(self, folder: Path, setup: Setup, rows: Table, weights: int):
        self.setup, self.rows, self.fitted = setup, rows, False
        kind = Watching if setup.network == "watching" else Validated if setup.validated else Network
        self.model = kind(setup, weights)
        self.sisa = SISA(**setup.arguments(folder, rows))
        callbacks = [self.sisa, Tripping()]
        if setup.saves:
            top = -1 if setup.saves == "every epoch" else 1
            callbacks.append(ModelCheckpoint(Path(folder) / "saved", save_top_k=top, enable_version_counter=False))
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        self.trainer = lightning.Trainer(
            max_epochs=setup.epochs, callbacks=callbacks, enable_checkpointing=bool(setup.saves),
            default_root_dir=str(folder), num_sanity_val_steps=0, **quiet,
        )  # fmt: skip
        self.dataset = Rows(rows)

    def loaders(self):
        own = DataLoader(self.dataset, self.setup.batch_size, shuffle=not self.setup.sequential)
        if not self.setup.validated:
            return {"train_dataloaders": own}
        return {"train_dataloaders": own, "val_dataloaders": DataLoader(Rows(table().at(range(12))), 8)}

    def fit(self):
        self.trainer.fit(self.model, **self.loaders())
        self.fitted = True

    def unlearn(self, **asked):
        given = {} if self.fitted else {"model": self.model, **self.loaders()}
        return self.trainer.unlearn(**asked, **given)

    def save(self, path):
        path = path.with_suffix(".ckpt")
        self.trainer.save_checkpoint(path)
        return path

    def roster(self, namer):
        return roster_of(self.sisa.naming, self.dataset, namer)

    def part(self, start, stop):
        return Subset(self.dataset, range(start, stop))

    def snapshot(self):
        module, trainer = self.model, self.trainer
        global_state = np.random.get_state()[1].tolist()  # noqa: NPY002
        random_state = (random.getstate(), global_state, torch.get_rng_state().tolist())
        return {
            "weights": [array.tobytes() for array in FRAMEWORK.weights(module)],
            "optimizers": [repr(optimizer.state_dict()) for optimizer in trainer.optimizers],
            "module": (sorted(vars(module).keys() - INTERNAL_ATTRIBUTES), module.training),
            "callbacks": [(type(each).__name__, repr(each.state_dict())) for each in trainer.callbacks],
            "progress": (trainer.current_epoch, trainer.global_step, trainer.max_epochs, trainer.should_stop),
            "random": random_state,
        }


class OnLightning:
    """Lightning."""

    adapter = "lightning"

    def training(self, folder, setup, rows, weights=1):
        return LightningTraining(folder, setup, rows, weights)

    def data(self, rows):
        return Rows(rows)

    def weights(self, model):
        held = dict(model.named_parameters()) | dict(model.named_buffers())
        return listed({name: value.detach() for name, value in held.items()})

    def constituents(self, record: Record):
        found = {}
        for shard, key in sorted(record.constituents().items()):
            stored = record.store.load(key)[0]["module"]
            found[shard] = listed(stored["parameters"] | stored["buffers"])
        return found

    def predict(self, model, x):
        was_training = model.training
        with torch.no_grad():
            answer = model.eval()(torch.from_numpy(x)).numpy()
        model.train(was_training)
        return answer

    def scale(self, learner, factor):
        with torch.no_grad():
            for parameter in learner.module.dense():
                parameter *= factor

    def spoil(self, model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(7)
        model.eval()

    def seen(self):
        found = list(SEEN)
        SEEN.clear()
        return found


def listed(tensors):
    """Return tensors as arrays: the dense layers first, then the others by name."""
    last = max(int(name.split(".")[1]) for name in tensors)
    dense = [f"net.{layer}.{kind}" for layer in (0, last) for kind in ("weight", "bias")]
    others = sorted(tensors.keys() - set(dense))
    first = [np.ascontiguousarray(tensors[name].numpy().T).copy() for name in dense]
    return first + [tensors[name].numpy().copy() for name in others]


FRAMEWORK = OnLightning()
