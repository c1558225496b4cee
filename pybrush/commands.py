"""What each command does: plan, train, unlearn, enqueue, verify, export and info.

`train` leaves the composed configuration in the record, and `unlearn` builds model, data and callbacks from it,
from modules that are trusted by name alone. Only `train` is a Hydra job with an output folder: the others
write nothing but the record. Guide: README.md.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pybrush import forget_file, tables
from pybrush.composing import (
    CONFIG,
    CommandAdapter,
    build,
    command_adapter,
    composed,
    conf_folder,
    record_keeper,
    settings_of,
    stored_config,
)
from pybrush.errors import ConfigurationError, RecordError
from pybrush.plan.forecast import Sizes, stage_bytes_of
from pybrush.record import Record
from pybrush.record.files import make_folder, replace, unlink
from pybrush.replay import Replay
from pybrush.settings import (
    EnqueueSettings,
    ExportSettings,
    InfoSettings,
    PlanSettings,
    UnlearnSettings,
    VerifySettings,
    path_of,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig

_PLAN_WORDS = {setting.name for setting in fields(PlanSettings)}

_HEADER = "# Written by `pybrush train`; `pybrush unlearn` builds model, data and callbacks from it.\n"


def plan(words: Sequence[str]) -> int:
    """Show what a training will cost and what forgetting from it will, before anything is trained."""
    own = [word for word in words if word in ("-h", "--help") or word.partition("=")[0] in _PLAN_WORDS]
    settings = settings_of("plan", own, PlanSettings)
    described = [word for word in words if word not in own]
    if bool(settings.record) + bool(settings.numbers) + bool(described) != 1:
        raise ConfigurationError(
            "say in one way what to price: experiment=NAME and the like, as for `pybrush train`; record=FOLDER; or "
            "bare numbers, samples=60000 shards=4 slices=3 epochs=20."
        )
    if settings.record:
        record = Record.open(path_of(settings.record))
        try:
            tables.show_recorded(record, settings.counts(record.samples().rows))
        finally:
            record.close()
        return 0
    sizes = _described_sizes(described) if described else _bare_sizes(settings)
    tables.show_forecast(sizes, settings.counts(sizes.samples))
    return 0


def train(words: Sequence[str]) -> int:
    """Train as a Hydra job; with -m one job after another."""
    import hydra

    job = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="run")(_train)
    with _arguments(["pybrush train", *words]), _raising_hydra():
        job()
    return 0


def unlearn(words: Sequence[str]) -> int:
    """Forget what a file names, with objects built from the record's configuration."""
    settings = settings_of("unlearn", words, UnlearnSettings)
    forget = settings.forget
    lines = [] if forget.file is None else forget_file.entries(path_of(forget.file))
    record = Record.open(path_of(settings.record))
    try:
        adapter = command_adapter(record.plan.adapter)
        if not (record.folder / CONFIG).is_file():
            raise _made_by_a_script(record, adapter, settings, lines)
        what = forget_file.named(record, forget.kind, forget.type, lines) if lines else _without_file(settings)
        config = stored_config(record, adapter, settings.allow)
    finally:
        record.close()
    runner, model, data = build(config, adapter)
    request = {name: getattr(settings, name) for name in ("guarantee", "method", "duplicates", "purge", "dry_run")}
    with _progress_shown():
        result = adapter.unlearn(runner, model, data, request | what)
    tables.show_result(result)
    if settings.report is not None:
        tables.show_line(f"report: {result.report(path_of(settings.report))}")
    if settings.receipt is not None and result.salt:
        tables.show_line(f"receipt: {result.write_receipt(path_of(settings.receipt))}")
    return 0


def enqueue(words: Sequence[str]) -> int:
    """Note in the record what is to be done later, with what else waits."""
    settings = settings_of("enqueue", words, EnqueueSettings)
    later = settings.forget
    lines = [] if later.file is None else forget_file.entries(path_of(later.file))
    record = Record.open(path_of(settings.record))
    try:
        if later.admit:
            entry = record.admit()
        elif later.kind == "amend" and lines:
            entry = record.amend(**forget_file.named(record, "ids", later.type, lines))
        else:
            what = forget_file.named(record, later.kind, later.type, lines) if lines else {"before": later.before}
            entry = record.enqueue(**what)
        tables.show_entry(record, entry)
    finally:
        record.close()
    return 0


def verify(words: Sequence[str]) -> int:
    """Check a record; return 0 if it is clean, 2 if something is unfinished, 3 if a replay differs. A defect raises."""
    settings = settings_of("verify", words, VerifySettings)
    record = Record.open(path_of(settings.record))
    try:
        again = _replayed_by(record, settings) if settings.depth == "replay" else None
        found = record.verify("manifests" if settings.depth == "manifests" else "digests")
        receipt = None if settings.receipt is None else record.check_receipt(path_of(settings.receipt))
    finally:
        record.close()
    tables.show_verification(record, found, receipt)
    status = 0 if found.is_clean else 2
    if again is None:
        return status
    with _progress_shown():
        replayed = again()
    tables.show_replay(replayed)
    return 3 if replayed.outcome == "mismatch" else status


def export(words: Sequence[str]) -> int:
    """Write the model that a record deploys into a folder of its own."""
    settings = settings_of("export", words, ExportSettings)
    record = Record.open(path_of(settings.record))
    try:
        with _progress_shown():
            place = record.export(path_of(settings.to), overwrite=settings.overwrite)
    finally:
        record.close()
    tables.show_line(f"exported to {place}; a later request removes from it what held the forgotten samples")
    return 0


def info(words: Sequence[str]) -> int:
    """Tell what a record holds, as a table or, for a monitor, as JSON."""
    settings = settings_of("info", words, InfoSettings)
    record = Record.open(path_of(settings.record))
    try:
        found = record.info()
    finally:
        record.close()
    if settings.as_json:
        sys.stdout.write(json.dumps(asdict(found), indent=1) + "\n")
    else:
        tables.show_info(found)
    return 0


# Planning


def _described_sizes(words: Sequence[str]) -> Sizes:
    """Return the sizes of a training that is built from its configuration and then dropped."""
    config = composed(words)
    adapter = command_adapter(config.adapter)
    record_keeper(config)
    return adapter.sizes(*build(config, adapter))


def _bare_sizes(settings: PlanSettings) -> Sizes:
    numbers = settings.numbers
    size = numbers.pop("model_bytes", None)
    return Sizes(**numbers, stage_bytes=None if size is None else stage_bytes_of(size))


# Training


def _train(config: DictConfig) -> None:
    """Build, fit, evaluate and show one training: the job that Hydra runs."""
    from omegaconf import OmegaConf

    adapter, keeper = command_adapter(config.adapter), record_keeper(config)
    folder = path_of(keeper.record)
    text = _HEADER + OmegaConf.to_yaml(config, resolve=True)
    runner, model, data = build(config, adapter)
    with _config_kept(folder, text):
        adapter.fit(runner, model, data)
    metrics = adapter.test(runner, model, data) if config.test else {}
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


# Forgetting


def _without_file(settings: UnlearnSettings) -> dict[str, Any]:
    """Return the keyword argument of `unlearn` of a request that needs no forget file."""
    if settings.forget.before is not None:
        return {"before": settings.forget.before}
    return {"queued": True} if settings.forget.queued else {"missing": True}


def _made_by_a_script(
    record: Record, adapter: CommandAdapter, settings: UnlearnSettings, lines: list[str]
) -> RecordError:
    """Return the error for a record without a configuration, with the Python lines to use."""
    kind, reading = settings.forget.kind, ""
    if not lines:
        request = {name: repr(value) for name, value in _without_file(settings).items()}
    elif kind == "ids" and record.plan.naming != "ids":
        request = {"forget": "forget"}
        reading = f"forget = ...  # a loader or data set of the samples: this record names them by {record.plan.naming}"
    else:
        (values,) = forget_file.named(record, kind, settings.forget.type, lines).values()
        entry = "int(line)" if any(isinstance(value, int) for value in values) else "line"
        request = {kind: kind}
        reading = f"{kind} = [{entry} for line in Path({settings.forget.file!r}).read_text().splitlines()]"
    request |= {"guarantee": repr(settings.guarantee)} if settings.guarantee is not None else {}
    request |= {"purge": repr(settings.purge)} if settings.purge != "delete" else {}
    request |= {"dry_run": "True"} if settings.dry_run else {}
    return _without_config(record, adapter.script(record, reading, request))


# Verifying


def _replayed_by(record: Record, settings: VerifySettings) -> Callable[[], Replay]:
    """Return what replays stages of a record with objects built from its configuration.

    Raises:
        RecordError: for a record without one, with the Python lines to use.
    """
    adapter = command_adapter(record.plan.adapter)
    allowed = settings.tolerance
    if not (record.folder / CONFIG).is_file():
        arguments = {"stages": repr(settings.stages), "tolerance": repr(allowed)}
        raise _without_config(record, adapter.replay_script(record, arguments))
    config = stored_config(record, adapter, settings.allow)
    request = {"stages": settings.stages, "tolerance": allowed}
    return lambda: adapter.replay(*build(config, adapter), request)


def _without_config(record: Record, lines: str) -> RecordError:
    return RecordError(
        f"{record.folder} was made by a script: it has no {CONFIG} from which model, data and callbacks could "
        f"be built. Nothing was touched. Use these lines instead:\n\n{lines}"
    )


# Surroundings


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
