"""Forked processes for the tests that kill, race and wait."""

import os
import traceback


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
