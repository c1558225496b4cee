"""The `pybrush` command: train a record from a configuration, forget from it, verify it.

    pybrush train experiment=mnist5k_sisa
    pybrush unlearn record=records/mnist5k forget.file=ids.txt guarantee=exact
    pybrush verify record=records/mnist5k

Hydra composes the settings from conf/pybrush. `train` leaves the composed configuration in the record, and
`unlearn` builds model, data and trainer from it, from modules that are trusted by name alone. Only `train`
is a Hydra job with an output folder: the other two write nothing but the record. Guide: README.md.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pybrush
from pybrush import forget_file, tables
from pybrush.adapters import GROUP
from pybrush.errors import ConfigurationError, MissingExtraError, PyBrushError, RecordError
from pybrush.record import Record
from pybrush.record.files import make_folder, replace, unlink
from pybrush.result import UnlearnResult
from pybrush.settings import UnlearnSettings, VerifySettings, check_words, path_of, quoted
from pybrush.trust import Trust, check_targets

if TYPE_CHECKING:
    from omegaconf import DictConfig

S = TypeVar("S")

CONFIG = "config.yaml"
"""Where `train` leaves the composed configuration, in the record."""

_HEADER = "# Written by `pybrush train`; `pybrush unlearn` builds model, data and trainer from it.\n"

_HELP = """\
usage: pybrush COMMAND [KEY=VALUE] ...

  pybrush train experiment=digits_sisa     train, and leave a record from which samples can be forgotten
  pybrush unlearn record=FOLDER forget.file=FILE guarantee=exact
                                           forget what the file names, and say what is guaranteed
  pybrush verify record=FOLDER             look whether everything is true that must be true of a record

Each command has its own --help. Exit status: 0 done, 1 refused or failed; verify: 0 clean, 1 a defect,
2 something is unfinished. PYBRUSH_DEBUG=1 shows where an error came from.
"""


class CommandAdapter(Protocol):
    """What the command asks of the adapter of a framework."""

    trusted: Sequence[str]
    distrusted: Sequence[str]

    def begin(self, seed: int) -> None:
        """Seed everything, before anything is built."""

    def fit(self, trainer: Any, model: Any, data: Any) -> None:
        """Train, leaving a record."""

    def test(self, trainer: Any, model: Any, data: Any) -> Mapping[str, float]:
        """Evaluate what was trained."""

    def unlearn(self, trainer: Any, model: Any, data: Any, request: Mapping[str, Any]) -> UnlearnResult:
        """Serve a request."""

    def script(self, record: Record, reading: str, request: Mapping[str, str]) -> str:
        """Return Python lines that serve a request on a record made by a script."""


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
        # Lightning turns Ctrl-C into an exit; Hydra ends --help and the like with one.
        return _interrupted(error) if isinstance(error.__context__, KeyboardInterrupt) else _status(error.code)
    except Exception as error:
        message = _message(error)
        if message is None or os.environ.get("PYBRUSH_DEBUG"):
            raise
        sys.stderr.write(f"pybrush {words[0]}: {message}\n")
        return 1


def train(words: Sequence[str]) -> int:
    """Train as a Hydra job; with -m one job after another."""
    import hydra

    job = hydra.main(version_base="1.3", config_path=str(_conf()), config_name="run")(_train)
    with _arguments(["pybrush train", *words]), _raising_hydra():
        job()
    return 0


def unlearn(words: Sequence[str]) -> int:
    """Forget what a file names, with objects built from the record's configuration."""
    settings = _settings("unlearn", words, UnlearnSettings)
    forget = settings.forget
    lines = [] if forget.file is None else forget_file.entries(path_of(forget.file))
    record = Record.open(path_of(settings.record))
    try:
        adapter = _adapter(record.plan.adapter)
        if not (record.folder / CONFIG).is_file():
            raise _made_by_a_script(record, adapter, settings, lines)
        what = forget_file.named(record, forget.kind, forget.type, lines) if lines else {"missing": True}
        config = _stored_config(record, adapter, settings.allow)
    finally:
        record.close()
    trainer, model, data = _build(config, adapter)
    request = {name: getattr(settings, name) for name in ("guarantee", "method", "duplicates", "dry_run")}
    with _progress_shown():
        result = adapter.unlearn(trainer, model, data, request | what)
    tables.show_result(result)
    if settings.report is not None:
        tables.show_line(f"report: {result.report(path_of(settings.report))}")
    return 0


def verify(words: Sequence[str]) -> int:
    """Check a record; return 0 if it is clean, 2 if something is unfinished. A defect raises."""
    record = Record.open(path_of(_settings("verify", words, VerifySettings).record))
    try:
        found = record.verify()
    finally:
        record.close()
    tables.show_verification(record, found)
    return 0 if found.is_clean else 2


# Training


def _train(config: DictConfig) -> None:
    """Build, fit, evaluate and show one training: the job that Hydra runs."""
    from omegaconf import OmegaConf

    adapter, keeper = _adapter(config.adapter), _record_keeper(config)
    folder = path_of(keeper.record)
    text = _HEADER + OmegaConf.to_yaml(config, resolve=True)
    trainer, model, data = _build(config, adapter)
    with _config_kept(folder, text):
        adapter.fit(trainer, model, data)
    metrics = adapter.test(trainer, model, data) if config.test else {}
    if not (folder / "ledger.sqlite").is_file():
        tables.show_line("nothing was recorded: this was a trial run of the framework")
        return
    record = Record.open(folder)
    tables.show_training(record, metrics)
    record.close()


@contextmanager
def _config_kept(folder: Path, text: str) -> Iterator[None]:
    """Leave a configuration in the record of the fit inside.

    In a new record at once, so that one whose fit was interrupted has it; in an older one only after the fit
    succeeded, so that a fit that is refused leaves the configuration that made the record.
    """
    path = folder / CONFIG
    if not _is_record(folder):
        if path.is_file() and not path.read_text(encoding="utf-8").startswith(_HEADER):
            raise ConfigurationError(f"{path} exists and is not PyBrush's; name another folder for the record.")
        make_folder(folder)
        replace(path, text.encode())
    try:
        yield
    finally:
        if not _is_record(folder):  # refused, or a trial run
            unlink(path)
            with suppress(OSError):
                folder.rmdir()
    if _is_record(folder):
        replace(path, text.encode())


def _is_record(folder: Path) -> bool:
    return (folder / "ledger.sqlite").is_file()


def _record_keeper(config: DictConfig) -> DictConfig:
    """Return the configuration of the one callback that keeps a record.

    Raises:
        ConfigurationError: where none or several do, and for ids that would be written down with it.
    """
    nodes = [node for node in (config.get("callbacks") or {}).values() if node is not None and "record" in node]
    if len(nodes) != 1:
        raise ConfigurationError(
            f"the command needs one callback that keeps a record, as callbacks=sisa; got {len(nodes)}."
        )
    for name in ("ids", "subjects"):
        if isinstance(nodes[0].get(name), Sequence) and not isinstance(nodes[0].get(name), str):
            raise ConfigurationError(
                f"{name} of the callback lists {len(nodes[0][name])} entries, and a configuration is stored where no "
                "request erases it. Give the data set such a column and name the column."
            )
    keeper: DictConfig = nodes[0]
    return keeper


def _build(config: DictConfig, adapter: CommandAdapter) -> tuple[Any, Any, Any]:
    """Return trainer, model and data as the configuration has them."""
    from hydra.utils import instantiate

    adapter.begin(config.seed)
    data = instantiate(config.data, _convert_="all")
    model = instantiate(config.model, _convert_="all")
    callbacks = instantiate(config.callbacks, _convert_="all")
    # A partial, because objects that are passed through `instantiate` may be copied.
    make = instantiate(config.trainer, _partial_=True, _convert_="all")
    return make(callbacks=[callback for callback in callbacks.values() if callback is not None]), model, data


# Forgetting


def _made_by_a_script(
    record: Record, adapter: CommandAdapter, settings: UnlearnSettings, lines: list[str]
) -> RecordError:
    """Return the error for a record without a configuration, with the Python lines to use."""
    kind, reading = settings.forget.kind, ""
    if settings.missing:
        request = {"missing": "True"}
    elif kind == "ids" and record.plan.naming != "ids":
        request = {"forget": "forget"}
        reading = f"forget = ...  # a loader or data set of the samples: this record names them by {record.plan.naming}"
    else:
        (values,) = forget_file.named(record, kind, settings.forget.type, lines).values()
        entry = "int(line)" if any(isinstance(value, int) for value in values) else "line"
        request = {kind: kind}
        reading = f"{kind} = [{entry} for line in Path({settings.forget.file!r}).read_text().splitlines()]"
    request |= {"guarantee": repr(settings.guarantee)} if settings.guarantee is not None else {}
    request |= {"dry_run": "True"} if settings.dry_run else {}
    return RecordError(
        f"{record.folder} was made by a script: it has no {CONFIG} from which model, data and trainer could be "
        f"built. Nothing was touched. Use these lines instead:\n\n{adapter.script(record, reading, request)}"
    )


def _stored_config(record: Record, adapter: CommandAdapter, allowed: Sequence[str]) -> DictConfig:
    """Return the configuration in a record, its targets checked, its callback pointed to where the record lies."""
    from hydra.utils import get_object
    from omegaconf import DictConfig, OmegaConf

    path = record.folder / CONFIG
    config = OmegaConf.load(path)
    parts = ("model", "data", "trainer", "callbacks")
    if not isinstance(config, DictConfig) or any(config.get(name) is None for name in parts):
        raise ConfigurationError(f"{path} must have {', '.join(parts)}; restore the file that `pybrush train` wrote.")
    trust = Trust(["pybrush", *adapter.trusted], adapter.distrusted, allowed)
    check_targets(OmegaConf.to_container(config, resolve=True), path, trust, get_object)
    _record_keeper(config).record = str(record.folder)
    return config


# Settings and surroundings


def _settings(command: str, words: Sequence[str], shape: type[S]) -> S:
    """Compose the settings of a command that is no Hydra job, so that nothing of them is written to disk.

    Raises:
        ConfigurationError: for words that are no settings; their values are not repeated.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    path = _conf() / f"{command}.yaml"
    if set(words) & {"-h", "--help"}:
        sys.stdout.write(f"usage: pybrush {command} [KEY=VALUE] ...\n\n{path.read_text(encoding='utf-8')}")
        raise SystemExit(0)
    check_words(words, OmegaConf.to_container(OmegaConf.load(path)))
    with initialize_config_dir(str(_conf()), version_base="1.3"):
        composed = compose(command, [quoted(word) for word in words])
    if OmegaConf.is_missing(composed, "record"):
        raise ConfigurationError(f"say which record: pybrush {command} record=FOLDER.")
    typed = OmegaConf.structured(shape)
    # Made of frozen dataclasses it is read-only, group by group; the checks of types are what we want of it.
    groups = [
        typed[name] for name in typed if not OmegaConf.is_missing(typed, name) and OmegaConf.is_config(typed[name])
    ]
    for node in (typed, *groups):
        OmegaConf.set_readonly(node, False)
    settings: S = OmegaConf.to_object(OmegaConf.merge(typed, composed))  # type: ignore[assignment]
    return settings


def _command(name: str) -> Callable[[Sequence[str]], int]:
    commands = {"train": train, "unlearn": unlearn, "verify": verify}
    if name not in commands:
        raise ConfigurationError(f"there is no such command; there are {', '.join(commands)}. See pybrush --help.")
    for package, module in (("hydra-core", "hydra"), ("rich", "rich")):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"this needs {package}, which is not installed: pip install 'pybrush[hydra]'.")
    return commands[name]


def _adapter(name: str) -> CommandAdapter:
    """Return an installed adapter by its name.

    Raises:
        MissingExtraError: where it or its framework is not installed.
    """
    remedy = f"pip install 'pybrush[{name}]'"
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        raise MissingExtraError(f"the adapter {name!r} is not installed: {remedy}.")
    try:
        adapter: CommandAdapter = found[0].load()()
    except ImportError as error:
        raise MissingExtraError(f"the adapter {name!r} cannot be imported ({error}): {remedy}.") from error
    return adapter


def _conf() -> Path:
    """Return the folder of our own configuration: in an installed wheel, or in a checkout."""
    package = Path(pybrush.__file__).resolve().parent
    installed = package / "conf"
    return (installed if installed.is_dir() else package.parent / "conf") / "pybrush"


@contextmanager
def _importable_from_here() -> Iterator[None]:
    """Let modules of the working folder be found, last, as for `python script.py`: a user's model lies there."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


@contextmanager
def _progress_shown() -> Iterator[None]:
    """Show what our own loggers say on standard error; no job log is written where ids are at hand."""
    handler, own = logging.StreamHandler(), logging.getLogger("pybrush")
    handler.addFilter(lambda record: record.name.startswith("pybrush"))
    level = own.level
    own.setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        own.setLevel(level)


@contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    """Let the process have other arguments for a while: hydra.main takes no others."""
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _raising_hydra() -> Iterator[None]:
    """Let Hydra raise errors instead of printing them, so that ours are printed in our way."""
    name = "HYDRA_FULL_ERROR"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


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
