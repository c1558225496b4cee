"""In Lightning: workers of a loader die, Ctrl-C is pressed, the process is killed; then the call is made again."""

import os
import random
import shutil
import signal
import time
from contextlib import closing
from functools import partial

import pytest

from pybrush.record import Record
from tests import reference
from tests.core.processes import fork, status_of
from tests.faults.training import CASE, DEATH, WITH_WORKERS, Fragile, fit, holds, in_process, tensors_of
from tests.lightning.test_bitwise import assert_same_record
from tests.lightning.twin import KEY, data_for, module_for, trainer_for

GONE = [3, 20]
NAMES = Fragile().names


def cell_of(row):
    """Return shard and slice of a row."""
    owner = reference.subject(KEY, b"s:" + Fragile().owners[row].encode())
    return reference.cell(owner, CASE.shards, CASE.slices)


def beside(row):
    """Return the name of another row in the last slice of a row's shard."""
    cells = [cell_of(other) for other in range(len(NAMES))]
    last = (cells[row][0], CASE.slices - 1)
    return next(name for name, cell in zip(NAMES, cells, strict=True) if cell == last and name not in named(GONE))


def named(rows):
    return [NAMES[row] for row in rows]


def states(folder):
    with closing(Record.open(folder / "record", KEY)) as record:
        return [request.state for request in record.requests]


@pytest.fixture
def twin(scratch):
    """A folder with the record of a fit that never had the rows, and the initial weights."""
    in_process(partial(fit, CASE, scratch / "twin", scratch / "initial.pt", GONE))
    return scratch / "twin"


@pytest.mark.parametrize("deadly", [NAMES, [beside(GONE[0])]], ids=["at once", "in the last slice"])
@pytest.mark.parametrize("call", ["fit", "unlearn"])
def test_a_worker_that_dies_leaves_the_model_as_it_was_and_the_rerun_ends_in_the_same_bits(call, deadly, scratch):
    initial = scratch / "initial.pt"
    in_process(partial(fit, WITH_WORKERS, scratch / "twin", initial, GONE))

    def story():
        (scratch / "hit").mkdir()
        module, trainer = module_for(WITH_WORKERS, initial), trainer_for(WITH_WORKERS, scratch / "hit")
        train = partial(trainer.fit, module, **data_for(WITH_WORKERS))
        ask = partial(trainer.unlearn, ids=named(GONE))
        if call == "unlearn":
            train()
        before, DEATH.names = tensors_of(module), frozenset(deadly)
        with pytest.raises(RuntimeError, match="DataLoader worker"):
            train() if call == "fit" else ask()
        assert holds(module, before)
        assert states(scratch / "hit") == ([] if call == "fit" else ["pending"])
        DEATH.names = frozenset()
        if call == "fit":
            train()
        ask()

    in_process(story)
    assert_same_record(scratch / "hit", scratch / "twin")
    assert states(scratch / "hit") == ["sealed"]


def ask(folder, interrupts):
    """Forget the rows in a new process; once more each time it is interrupted, as often as `interrupts` says."""
    module, trainer = module_for(CASE, folder / "initial.pt"), trainer_for(CASE, folder)
    before = tensors_of(module)
    while True:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning has set it to be ignored
        os.write(interrupts, b"!")
        try:
            trainer.unlearn(ids=named(GONE), model=module, **data_for(CASE))
        except (KeyboardInterrupt, SystemExit):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if states(folder)[-1:] in ([], ["pending"]):
                assert holds(module, before)
            continue
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return


SEEDS = [*range(2), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 25))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill"])
def test_a_request_that_is_stopped_at_random_is_finished_by_the_next_call(kind, seed, twin, scratch):
    base, chance = scratch / "base", random.Random(seed)
    in_process(partial(fit, CASE, base, scratch / "initial.pt"))
    shutil.copy(scratch / "initial.pt", base / "initial.pt")
    begun, say = os.pipe()
    started, longest = time.perf_counter(), None
    for _ in range(100):
        child = fork(partial(ask, base, say))
        assert os.read(begun, 1) == b"!"
        wait = chance.uniform(0, 0.4)
        time.sleep(wait)
        os.kill(child, kind)
        status = status_of(child)
        if status == 0:
            break
        assert status == kind == signal.SIGKILL
    assert_same_record(base, twin)
    assert states(base) == ["sealed"]
