"""A state of a record is exchanged for another, so that manifests, release and digests all agree with it."""

import json
import shutil
from contextlib import closing
from dataclasses import replace

from pybrush.record import Record


def forge(folder, shard, cell, change, **manifest):
    """Let the state of a stage be `change(state)`, and verification still find the record clean."""
    with closing(Record.open(folder)) as record:
        store, graph = record.store, record.graph()
        stage = next(stage for stage in graph if (stage.shard, stage.slice) == (shard, cell))
        state, held = store.load(stage.key)
        aside = store.write_aside(change(state), replace(held, **manifest))
        shutil.rmtree(store.path(stage.key))
        store.publish(aside, stage.key)
        sha256 = store.manifest(stage.key).sha256
        for child in graph:
            if child.parent == stage.key:
                path = store.path(child.key) / "manifest.json"
                path.write_text(json.dumps({**json.loads(path.read_text()), "parent_sha256": sha256}))
        ((text,),) = record.ledger.rows("SELECT constituents FROM releases")
        released = json.loads(text)
        for constituent in released.values():
            if constituent["key"] == stage.key:
                constituent["sha256"] = sha256
        with record.ledger.writing("forged"):
            record.ledger.change("UPDATE releases SET constituents = ?", (json.dumps(released),))
        assert record.verify().is_clean


def contents(folder):
    """Return every file of a folder with its bytes and its time."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
