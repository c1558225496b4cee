"""Launching the script of the DDP tests, and reading what its ranks noted."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tests.lightning.models import Rows

ROOT = Path(__file__).parents[2]
GONE = [3, 20]
NAMES = [Rows().names[row] for row in GONE]


def launch(folder, steps, command=(sys.executable,), ranks=2, falls="", **plan):
    """Run a script in as many processes as its trainer says; return what each rank noted."""
    folder.mkdir(exist_ok=True)
    initial = plan.pop("initial", folder / "initial.pt")
    (folder / "plan.json").write_text(json.dumps({"initial": str(initial), "steps": steps, **plan}))
    (done,) = run(folder, [command], falls)
    if falls:
        assert done.returncode != 0
        return done.stderr
    return noted(folder, [done], ranks)


def run(folder, commands, falls=""):
    """Run the script of a folder under some launchers at once, each as if it were alone on its machine."""
    hidden = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "PL_GLOBAL_SEED")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"OMP_NUM_THREADS": "1", "FALLS": falls}
    settings = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 400}
    script = ["-m", "tests.lightning.ddp_script", str(folder / "plan.json")]
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda command: subprocess.run([*command, *script], **settings), commands))


def noted(folder, done, ranks):
    """Return what each rank noted when all of them have ended."""
    assert all(process.returncode == 0 for process in done), [process.stderr[-5000:] for process in done]
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(ranks)]


def free_port():
    """Return a port on which nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def same(one, other):
    """Whether two notes are equal, bit for bit where they are tensors."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def fresh_fit(folder, initial, gone=GONE, **plan):
    """Fit without some rows, in new processes and an empty folder; return what it answers."""
    answers = [["fit"], ["state", "state"], ["answers", "answers"]]
    return launch(folder, answers, initial=initial, gone=gone, **plan)
