"""What the tests of DDP run in processes of their own: `python -m tests.lightning.ddp_script PLAN`.

PLAN is a JSON file: settings of trainer, SISA and data, and a list of steps. Every rank does all of them and
writes what it saw to rank-N.pt beside the plan.
"""

import json
import os
import sys
import time
import warnings
from pathlib import Path

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from pybrush.errors import PyBrushError
from pybrush_lightning import SISA
from tests.lightning import ddp_models
from tests.lightning.models import Rows
from tests.lightning.twin import KEY, SEED


class Story:
    """One script, as each rank runs it."""

    def __init__(self, plan, folder):
        self.plan, self.folder, self.facts = plan, folder, {}
        self.kind = getattr(ddp_models, plan.get("module", "Net"))
        self.trainer = self.new_trainer()
        self.rank = self.trainer.global_rank
        self.module = self.new_module()

    def new_trainer(self, **changes):
        rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
        settings = {"shards": 2, "slices": 2, "seed": SEED, "ids": "names", "key": KEY, **self.plan.get("sisa", {})}
        if rank:  # what another rank has must not matter: it touches no record
            settings |= {"key": None, "seed": 99}
        place = self.folder / ("record" if rank == 0 else f"record-of-rank-{rank}")
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        quiet |= {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "enable_checkpointing": False}
        quiet |= {"max_epochs": 2, "default_root_dir": str(self.folder)}
        callbacks = [SISA(record=place, **settings), *ddp_models.callbacks(self.plan, self.folder)]
        return lightning.Trainer(callbacks=callbacks, **(quiet | self.plan.get("trainer", {}) | changes))

    def new_module(self):
        torch.manual_seed(100 + self.rank)  # ranks begin apart, as in a script that seeds nothing
        module = self.kind()
        if self.rank == 0:
            initial = Path(self.plan["initial"])
            if initial.exists():
                module.load_state_dict(torch.load(initial, weights_only=True))
            else:
                torch.save(module.state_dict(), initial)
        return module

    def data(self):
        rows = getattr(ddp_models, self.plan.get("rows", "Rows"))(self.plan.get("gone", ()))
        settings = {"batch_size": 5, "shuffle": True, **self.plan.get("loader", {})}
        found = {"train_dataloaders": DataLoader(rows, **settings)}
        if self.plan.get("validation"):
            held_out = Rows(rows=11, seed=9)
            found["val_dataloaders"] = DataLoader(TensorDataset(held_out.x, held_out.y), batch_size=3)
        return found

    # Steps

    def fit(self):
        self.trainer.fit(self.module, **self.data())

    def unlearn(self, name="result", **ask):
        result = self.trainer.unlearn(**ask)
        self.note_result(name, result)

    def unlearn_anew(self, name="result", trainer=None, **ask):
        """Serve a request with a trainer and a module that know nothing, as the first call of a process."""
        self.trainer = self.new_trainer(**(trainer or {}))
        self.module = self.new_module()
        self.note_result(name, self.trainer.unlearn(**ask, model=self.module, **self.data()))

    def note_result(self, name, result):
        inputs = Rows(seed=3).x
        self.facts[name] = {
            "forgotten": result.forgotten,
            "method": result.method,
            "guarantee": str(result.guarantee),
            "rebuilt": result.cost.stages_rebuilt,
            "record": str(result.record),
            "answers": None if result.model is None else result.model.eval()(inputs).detach(),
        }

    def refused(self, name, ask=None, fit=False):
        """Do what has to raise, and note what it raised here and how long that took."""
        began = time.monotonic()
        try:
            if fit:
                self.fit()
            else:
                self.trainer.unlearn(**ask, model=self.module, **self.data())
        except (PyBrushError, RuntimeError, ValueError) as error:
            self.facts[name] = {"kind": type(error).__name__, "text": str(error), "seconds": time.monotonic() - began}

    def state(self, name):
        """Note every tensor that the module holds."""
        tensors = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        self.facts[name] = {key: tensor.detach().clone() for key, tensor in tensors.items()}

    def answers(self, name):
        """Note what trainer.test and trainer.validate log, which the aggregate answers."""
        inputs = Rows(seed=3)
        loader = DataLoader(TensorDataset(inputs.x, inputs.y), batch_size=4)
        metrics = self.trainer.test(self.module, loader, verbose=False)
        self.facts[name] = metrics[0]

    def predictions(self, name):
        """Note what trainer.predict returns to this rank, through the aggregate."""
        found = self.trainer.predict(self.module, DataLoader(TensorDataset(Rows(seed=3).x[:7]), batch_size=4))
        self.facts[name] = torch.cat(found) if found else None

    def save(self, name):
        """Save a checkpoint as a user would, on all ranks."""
        self.trainer.save_checkpoint(self.folder / name)

    def note(self, name, attribute):
        """Note an attribute of the module."""
        self.facts[name] = getattr(self.module, attribute)


def main():
    warnings.simplefilter("ignore")
    place = Path(sys.argv[1])
    story = Story(json.loads(place.read_text()), place.parent)
    for step in story.plan["steps"]:
        getattr(story, step[0])(*step[1:-1], **step[-1])
    torch.save(story.facts, place.parent / f"rank-{story.rank}.pt")


if __name__ == "__main__":
    main()
