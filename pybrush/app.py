"""The `pybrush` command: train a record from a configuration, forget from it now or later, price, verify, export it.

    pybrush plan experiment=mnist5k_sisa
    pybrush train experiment=mnist5k_sisa
    pybrush unlearn record=records/mnist5k forget.file=ids.txt guarantee=exact
    pybrush enqueue record=records/mnist5k forget.file=ids.txt
    pybrush verify record=records/mnist5k
    pybrush export record=records/mnist5k to=deploy/mnist5k
    pybrush info record=records/mnist5k

This file is the way in and the way out: which command is meant, and how errors and interruptions are told.
What each command does is in `pybrush.commands`. Guide: README.md.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pybrush import commands
from pybrush.errors import ConfigurationError, MissingExtraError, PyBrushError

_HELP = """\
usage: pybrush COMMAND [KEY=VALUE] ...

  pybrush plan experiment=digits_sisa      what shards and slices will cost, before anything is trained
  pybrush train experiment=digits_sisa     train, and leave a record from which samples can be forgotten
  pybrush unlearn record=FOLDER forget.file=FILE guarantee=exact
                                           forget what the file names, and say what is guaranteed
  pybrush enqueue record=FOLDER forget.file=FILE
                                           note what a later unlearn forget.queued=true forgets, all at once
  pybrush verify record=FOLDER             look whether everything is true that must be true of a record
  pybrush export record=FOLDER to=FOLDER   write the model to deploy, and nothing else of the record
  pybrush info record=FOLDER               tell what a record holds: rows, stages, requests, bytes on disk

Each command has its own --help. Exit status: 0 done, 1 refused or failed; verify: 0 clean, 1 a defect,
2 something is unfinished, 3 a stage does not replay. PYBRUSH_DEBUG=1 shows where an error came from.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the words after `pybrush`; None: those of the process.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_HELP)
        return 0
    try:
        with _importable_from_here():
            return _command(words[0])(words[1:])
    except KeyboardInterrupt as error:
        return _interrupted(error)
    except SystemExit as error:
        # A framework may turn Ctrl-C into an exit; Hydra ends --help and the like with one.
        return _interrupted(error) if isinstance(error.__context__, KeyboardInterrupt) else _status(error.code)
    except Exception as error:
        message = _message(error)
        if message is None or os.environ.get("PYBRUSH_DEBUG"):
            raise
        sys.stderr.write(f"pybrush {words[0]}: {message}\n")
        return 1


def _command(name: str) -> Callable[[Sequence[str]], int]:
    known = {
        "plan": commands.plan,
        "train": commands.train,
        "unlearn": commands.unlearn,
        "enqueue": commands.enqueue,
        "verify": commands.verify,
        "export": commands.export,
        "info": commands.info,
    }
    if name not in known:
        raise ConfigurationError(f"there is no such command; there are {', '.join(known)}. See pybrush --help.")
    for package, module in (("hydra-core", "hydra"), ("rich", "rich")):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"this needs {package}, which is not installed: pip install 'pybrush[hydra]'.")
    return known[name]


@contextmanager
def _importable_from_here() -> Iterator[None]:
    """Let modules of the working folder be found, last, as for `python script.py`: a user's model lies there."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _message(error: BaseException) -> str | None:
    """Return what to tell the user of a deliberate error, its own notes included; None for any other."""
    library = type(error).__module__.partition(".")[0]
    is_composing, cause = library in ("hydra", "omegaconf", "yaml"), error.__cause__
    if is_composing and isinstance(cause, PyBrushError):
        error, cause = cause, None
    if not isinstance(error, (PyBrushError, OSError)) and not is_composing:
        return None
    why = [str(cause)] if is_composing and cause is not None else []
    return "\n".join([str(error), *why, *getattr(error, "__notes__", ())])


def _interrupted(error: BaseException) -> int:
    """Say what an interruption left; the shells' status for Ctrl-C."""
    notes = getattr(error, "__notes__", ["What is finished is kept; the same command goes on from there."])
    sys.stderr.write("\n".join(["\ninterrupted.", *notes]) + "\n")
    return 130


def _status(code: object) -> int:
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    sys.exit(main())
