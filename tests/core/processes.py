"""Forked processes for the tests that kill, race and wait."""

import os
import signal
import traceback
from contextlib import contextmanager


def fork(work):
    """Run `work` in a forked process and return its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            if status:
                traceback.print_exc()
            os._exit(status)
    return child


def status_of(child):
    """Wait for a process; 0 where its work was done, else how it ended (see `os.waitpid`)."""
    return os.waitpid(child, 0)[1]


@contextmanager
def paused(work):
    """Run `work(pause)` in a process; the block runs from its call of `pause()` on, and it must then succeed."""
    (begun, say), (proceed, go) = os.pipe(), os.pipe()

    def pause():
        os.write(say, b"!")
        os.read(proceed, 1)

    child = fork(lambda: work(pause))
    os.close(say)
    try:
        assert os.read(begun, 1) == b"!", "the process ended before it paused"
        yield
    except BaseException:
        os.kill(child, signal.SIGKILL)
        status_of(child)
        raise
    os.write(go, b"!")
    assert status_of(child) == 0
    for handle in (begun, proceed, go):
        os.close(handle)


def at_once(*works):
    """Run functions in processes that start together; each must succeed."""
    waiting, start = os.pipe()

    def started(work):
        os.read(waiting, 1)
        work()

    children = [fork(lambda work=work: started(work)) for work in works]
    os.write(start, b"!" * len(works))
    assert [status_of(child) for child in children] == [0] * len(works)
    for handle in (waiting, start):
        os.close(handle)
