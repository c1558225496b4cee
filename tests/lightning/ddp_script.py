"""What the tests of DDP run in processes of their own: `python -m tests.lightning.ddp_script PLAN`.

PLAN is a JSON file: settings of trainer, SISA and data, and a list of steps. Every rank does all of them and
writes what it saw to rank-N.pt beside the plan.
"""

import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from unittest.mock import patch

import lightning
import pytorch_lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from pybrush.errors import PyBrushError
from pybrush_lightning import SISA, replay
from tests.lightning import ddp_models, models
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
        package = pytorch_lightning if self.plan.get("package") else lightning
        callbacks = [SISA(record=place, **settings), *ddp_models.callbacks(self.plan.get("callbacks", []), self.folder)]
        return package.Trainer(callbacks=callbacks, **(quiet | self.plan.get("trainer", {}) | changes))

    def new_module(self):
        torch.manual_seed(100 + self.rank)  # ranks begin apart, as in a script that seeds nothing
        module = self.kind()
        initial = Path(self.plan["initial"])
        if self.rank == 0 and not initial.exists():
            torch.save(module.state_dict(), initial)
        elif self.rank == 0:
            module.load_state_dict(torch.load(initial, weights_only=True))
        return module

    def data(self):
        rows = partial(getattr(ddp_models, self.plan.get("rows", "Rows")), self.plan.get("gone", ()))
        settings = {"batch_size": 5, "shuffle": True, **self.plan.get("loader", {})}
        if self.plan.get("datamodule"):
            return {"datamodule": models.Data(rows, settings)}
        found = {"train_dataloaders": DataLoader(rows(), **settings)}
        if self.plan.get("validation"):
            held_out = Rows(rows=11, seed=9)
            found["val_dataloaders"] = DataLoader(TensorDataset(held_out.x, held_out.y), batch_size=3)
        return found

    # Steps

    def fit(self):
        self.trainer.fit(self.module, **self.data())

    def unlearn(self, name, ask):
        self.note_result(name, self.trainer.unlearn(**ask))

    def replay(self, name, **asked):
        found = replay(self.trainer, **asked)
        self.facts[name] = [(stage.shard, stage.slice, stage.outcome, stage.places) for stage in found.stages]

    def replay_anew(self, name, **asked):
        self.begin_anew()
        self.replay(name, model=self.module, **self.data(), **asked)

    def begin_anew(self, **settings):
        """Have a trainer and a module that know nothing, as at the beginning of a script."""
        self.trainer, self.module = self.new_trainer(**settings), self.new_module()

    def unlearn_anew(self, name, ask):
        self.note_result(name, self.trainer.unlearn(**ask, model=self.module, **self.data()))

    def note_result(self, name, result):
        self.facts[name] = {
            "forgotten": result.forgotten,
            "method": result.method,
            "guarantee": type(result.guarantee).__name__,
            "rebuilt": result.cost.stages_rebuilt,
            "record": str(result.record),
            "answers": None if result.model is None else result.model.eval()(Rows(seed=3).x).detach(),
        }

    def refused(self, label, method, **arguments):
        """Do what has to raise, and note what it raised here."""
        try:
            getattr(self, method)(**arguments)
        except (PyBrushError, RuntimeError) as error:
            self.facts[label] = [type(error).__name__, str(error)]

    def falls(self, where):
        """Let training steps raise where FALLS says so (see Watched), or nowhere."""
        os.environ["FALLS"] = where

    def collecting_fails(self, name, ask):
        """Note how a request ends whose erasure fails on rank 0, after its commit."""
        with patch("pybrush.forget.collect", side_effect=RuntimeError("the disk is gone")):
            self.refused(name, "unlearn", name=name, ask=ask)

    def limit(self, name):
        """Note the trainer's own number of epochs."""
        self.facts[name] = self.trainer.max_epochs

    def state(self, name):
        """Note every tensor that the module holds, and where the trainer stands."""
        tensors = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        self.facts[name] = {key: tensor.detach().clone() for key, tensor in tensors.items()}
        self.facts[f"{name}: trainer"] = [self.trainer.current_epoch, self.trainer.global_step]

    def answers(self, name):
        """Note what trainer.test logs, and what trainer.predict returns to this rank."""
        inputs = Rows(seed=3)
        metrics = self.trainer.test(self.module, DataLoader(TensorDataset(inputs.x, inputs.y), batch_size=4))
        self.facts[name] = metrics[0]["test_loss"]
        if not self.plan.get("spawned"):  # Lightning returns no predictions from spawned processes
            found = self.trainer.predict(self.module, DataLoader(TensorDataset(inputs.x[:7]), batch_size=4))
            self.facts[f"{name}: predicted"] = torch.cat(found)

    def save(self, name):
        """Save a checkpoint as a user would, on all ranks."""
        self.trainer.save_checkpoint(self.folder / name)

    def seen(self):
        """Note what training steps of this rank were given, and where each stage left its weights."""
        self.facts["seen"], self.facts["ends"] = list(ddp_models.SEEN), list(ddp_models.ENDS)


def main():
    warnings.simplefilter("ignore")
    place = Path(sys.argv[1])
    story = Story(json.loads(place.read_text()), place.parent)
    for step, *arguments in story.plan["steps"]:
        settings = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
        getattr(story, step)(*arguments, **settings)
    torch.save(story.facts, place.parent / f"rank-{story.rank}.pt")


if __name__ == "__main__":
    main()
