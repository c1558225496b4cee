"""In Lightning: workers of a loader die, Ctrl-C is pressed, the process is killed; then the call is made again."""

import os
import random
import shutil
import signal
import time
from contextlib import closing
from functools import partial

import pytest

from pybrush.errors import RecordError
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


LATER = [beside(GONE[0])]


@pytest.mark.parametrize(
    ("call", "deadly"),
    [
        ("fit", NAMES),
        ("unlearn", LATER),
        pytest.param("fit", LATER, marks=pytest.mark.long),
        pytest.param("unlearn", NAMES, marks=pytest.mark.long),
    ],
    ids=["fit at once", "request later", "fit later", "request at once"],
)
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


def train(trainer, module):
    trainer.fit(module, **data_for(CASE))


def forget(trainer, module):
    trainer.unlearn(ids=named(GONE), model=module, **data_for(CASE))


def is_over(call, folder):
    """Whether all that is left of a call is to give its answer, or for a request to collect."""
    if call is forget:
        return states(folder)[-1:] not in ([], ["pending"])
    try:
        with closing(Record.open(folder / "record", KEY)) as record:
            return not record.verify().missing
    except RecordError:  # not even planned
        return False


def insist(call, folder, begun):
    """Make a call in a new process; say when it begins, and begin again after each interrupt."""
    module, trainer = module_for(CASE, folder / "initial.pt"), trainer_for(CASE, folder)
    before = tensors_of(module)
    is_done = False
    while not is_done:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored
            os.write(begun, b"!")
            call(trainer, module)
            is_done = True
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        except (KeyboardInterrupt, SystemExit):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if not is_over(call, folder):
                assert holds(module, before)


def stop_until_done(work, kind, chance):
    """Start some work again and again and send it a signal each time it begins, later from time to time."""
    longest = 0.0
    while True:
        begun, say = os.pipe()
        child = fork(partial(work, say))
        os.close(say)
        while os.read(begun, 1):
            longest += 0.1
            time.sleep(chance.uniform(0, longest))
            os.kill(child, kind)
        os.close(begun)
        status = status_of(child)
        if status == 0:
            return
        assert status == kind == signal.SIGKILL


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 25))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill"])
def test_a_request_that_is_stopped_at_random_is_finished_by_the_next_call(kind, seed, twin, scratch):
    folder = scratch / "stopped"
    in_process(partial(fit, CASE, folder, scratch / "initial.pt"))
    shutil.copy(scratch / "initial.pt", folder / "initial.pt")
    stop_until_done(partial(insist, forget, folder), kind, random.Random(seed))
    assert_same_record(folder, twin)
    assert states(folder) == ["sealed"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fit_that_is_interrupted_at_random_is_finished_by_the_next_call(seed, twin, scratch):
    folder = scratch / "stopped"
    folder.mkdir()
    shutil.copy(scratch / "initial.pt", folder / "initial.pt")
    stop_until_done(partial(insist, train, folder), signal.SIGINT, random.Random(seed))
    in_process(lambda: forget(trainer_for(CASE, folder), module_for(CASE, folder / "initial.pt")))
    assert_same_record(folder, twin)
