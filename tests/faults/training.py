"""What the faults happen to in Lightning: a small training whose workers may die, in processes of its own."""

import os
import signal

import torch
from torch.utils.data import get_worker_info

from tests.core.processes import fork, status_of
from tests.lightning.models import Rows
from tests.lightning.twin import Case, data_for, module_for, trainer_for


class Death:
    """Kills the worker process that reads one of some rows, while it is armed."""

    def __init__(self):
        self.names = frozenset()

    def look(self, name):
        if name in self.names and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)


DEATH = Death()


class Fragile(Rows):
    """Rows whose reading may kill a worker."""

    def __getitem__(self, row):
        DEATH.look(self.names[row])
        return super().__getitem__(row)


CASE = Case(rows=Fragile, sisa={"ids": "names", "subjects": "owners"})
WITH_WORKERS = Case(rows=Fragile, sisa={"ids": "names", "subjects": "owners"}, loader={"num_workers": 2})


def in_process(work):
    """Do some work in a process of its own, which must come to its end."""
    assert status_of(fork(work)) == 0


def fit(case, folder, initial, gone=()):
    """Fit a case in a folder; return trainer and module."""
    folder.mkdir(exist_ok=True)
    module, trainer = module_for(case, initial, gone), trainer_for(case, folder)
    trainer.fit(module, **data_for(case, gone))
    return trainer, module


def tensors_of(module):
    """Return a copy of everything in a module's state_dict."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def holds(module, tensors):
    """Whether a module's state_dict is, bit for bit, what `tensors_of` returned."""
    return all(torch.equal(tensors[name], tensor) for name, tensor in module.state_dict().items())
