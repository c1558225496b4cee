"""The folder of an exported model: one file of weights for each constituent, and `model.json`.

What an adapter's `export` and `load_export` have in common. The adapter packs a constituent into bytes and makes a
model of them again; the place, the lock, the description and the digests are here. Each file is registered with the
stage whose weights it holds, so a later request that replaces the stage removes it. Guide: docs/security.md, "Deploy
the model alone".
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pybrush.errors import ConfigurationError, CorruptRecordError, RecordError, UnsupportedError
from pybrush.record import states
from pybrush.record.files import make_folder, sync_folder, unlink, write_new
from pybrush.record.locks import request_lock
from pybrush.record.record import Record

_log = logging.getLogger(__name__)

FORMAT = 1
DESCRIPTION = "model.json"

_AGAIN = "Export the record again."

Attributes = Mapping[str, Mapping[str, Any]]
"""Plain attributes of each part of a model by its name; they are never exported, since they may hold anything."""


@dataclass(frozen=True)
class Packed:
    """One constituent, ready to be written.

    Attributes:
        data: a safetensors file.
        described: what its entry in the description says besides file, shard and digest.
        attributes: those of the trained model.
    """

    data: bytes
    described: dict[str, Any]
    attributes: Attributes


def write_export(
    record: Record,
    folder: str | Path,
    pack: Callable[[str], Packed],
    described: Callable[[], dict[str, Any]],
    before: Callable[[], Attributes],
    overwrite: bool,
) -> Path:
    """Write the model that a record deploys (see `Record.export`).

    Args:
        record: whose model.
        folder: where to.
        pack: packs the constituent under the key of its stage.
        described: what the description says of the model, called under the record's lock as `pack` and `before` are.
        before: the attributes before the training; those that it changed are named in the description.
        overwrite: replace an earlier export in the folder.
    """
    place = _checked_place(record, folder)
    with request_lock(record.folder):  # no request replaces a stage meanwhile
        keys = sorted(record.constituents().items())
        missing = [str(shard) for shard, key in keys if not record.store.has(key)]
        if missing or not keys:
            raise RecordError(
                f"{record.folder} has no finished constituent of shards {', '.join(missing) or 'at all'}: finish the "
                "fit or the request first."
            )
        _make_place(place, overwrite)
        try:
            _write(record, place, pack, {**described(), "format": FORMAT}, before())
        except BaseException:
            _clear(place)
            raise
    return place


def read_description(folder: str | Path) -> dict[str, Any]:
    """Return what `model.json` in an exported folder says, and tell of attributes that are not in the export.

    Raises:
        RecordError: where the folder holds no finished export.
        CorruptRecordError: where it cannot be read.
        UnsupportedError: where it is of another format.
    """
    path = Path(folder) / DESCRIPTION
    try:
        described: dict[str, Any] = json.loads(path.read_bytes())
        known = described["format"] == FORMAT
    except FileNotFoundError as error:
        raise RecordError(f"{folder} holds no finished export: {path.name} is missing. {_AGAIN}") from error
    except (ValueError, TypeError, LookupError) as error:
        raise CorruptRecordError(f"{path} cannot be read ({error!r}). {_AGAIN}") from error
    if not known:
        raise UnsupportedError(f"{path} is of format {described['format']!r}, and this version reads {FORMAT}.")
    _say_left_out(described["attributes_left_out"])
    return described


def read_constituent(folder: str | Path, entry: dict[str, Any]) -> bytes:
    """Return the file of weights that an entry of the description names, checked against its digest.

    Raises:
        RecordError: where it is not there.
        CorruptRecordError: where it is another than was exported.
    """
    path = Path(folder) / str(entry["file"])
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise RecordError(
            f"{path} is not there: a request has removed it, since it held forgotten samples, or it was not copied. "
            f"{_AGAIN}"
        ) from error
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise CorruptRecordError(f"{path} is not the file that was exported. {_AGAIN}")
    return data


def refuse_constituent(folder: str | Path, entry: dict[str, Any], error: Exception) -> NoReturn:
    """Say that a file of weights has the bytes that were exported, and that no weights can be made of them."""
    raise CorruptRecordError(f"{Path(folder) / entry['file']} cannot be read ({error}). {_AGAIN}") from error


def _checked_place(record: Record, folder: str | Path) -> Path:
    """Refuse places from which a request could not remove the files, or in which they would do harm."""
    if "://" in str(folder):  # as fsspec writes another file system
        raise UnsupportedError(f"{folder} is no local folder, so a later request could not erase the model there.")
    place = Path(folder).absolute()
    if place.resolve().is_relative_to(record.folder.resolve()):
        raise ConfigurationError(f"{place} lies in the record itself; export to a folder outside of {record.folder}.")
    return place


def _make_place(place: Path, overwrite: bool) -> None:
    """Make the folder, or take an earlier export out of it."""
    if place.exists() and not place.is_dir():
        raise ConfigurationError(f"{place} is a file; name a folder for the exported model.")
    make_folder(place)
    if any(place.iterdir()) and not overwrite:
        raise ConfigurationError(
            f"{place} is not empty; name another folder, or pass overwrite=True to replace the export in it."
        )
    _clear(place)


def _clear(place: Path) -> None:
    """Take an export out of a folder, the description first; other files stay."""
    unlink(place / DESCRIPTION)
    for path in sorted(place.glob("constituent_*.safetensors")):
        unlink(path)


def _write(
    record: Record, place: Path, pack: Callable[[str], Packed], described: dict[str, Any], before: Attributes
) -> None:
    entries: list[dict[str, Any]] = []
    changed: set[str] = set()
    for shard, key in sorted(record.constituents().items()):
        packed = pack(key)
        entries.append(_write_constituent(record, place, shard, key, packed))
        changed.update(_changed(before, packed.attributes))
    left_out = sorted(changed)
    _say_left_out(left_out)
    whole = {**described, "constituents": entries, "attributes_left_out": left_out}
    # Last, so that a folder that has it is whole.
    write_new(place / DESCRIPTION, json.dumps(whole, sort_keys=True, indent=1).encode())
    sync_folder(place)


def _write_constituent(record: Record, place: Path, shard: int, key: str, packed: Packed) -> dict[str, Any]:
    """Write one constituent; return its entry in the description."""
    path = place / f"constituent_{shard}.safetensors"
    record.register_artefact(path, key, "export")
    write_new(path, packed.data)
    digest = hashlib.sha256(packed.data).hexdigest()
    return {**packed.described, "file": path.name, "sha256": digest, "shard": shard}


def _changed(start: Attributes, now: Attributes) -> Iterator[str]:
    """Return the names of the plain attributes that are not what they were before the training."""
    for part in sorted(start.keys() | now.keys()):
        before, after = start.get(part, {}), now.get(part, {})
        for name in sorted(before.keys() | after.keys()):
            if name not in before or name not in after or _digest(before[name]) != _digest(after[name]):
                yield f"{part}.{name}".lstrip(".")


def _digest(value: Any) -> str:
    return states.init_digest(value)


def _say_left_out(names: list[str]) -> None:
    if names:
        _log.warning(
            "training changed %d plain attributes of the model, such as %s; they are not in the export. Where it "
            "predicts with them, make them buffers, or variables that are not trained.",
            *(len(names), names[0]),
        )
