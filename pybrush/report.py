"""The page of a result: one plain, self-contained HTML file, every value escaped."""

from __future__ import annotations

import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pybrush.guarantee import Assumption, as_plain

if TYPE_CHECKING:
    from pybrush.result import UnlearnResult

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
    "table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}"
    "th,td{border:1px solid #bbb;padding:.35rem .6rem;text-align:left;vertical-align:top}"
    "th{background:#f3f3f3}table.facts th{width:34%}code{font-size:.9em;overflow-wrap:anywhere}"
)


def write_page(result: UnlearnResult, path: Path) -> Path:
    """Write the page of a result, readable by its owner alone; return its path."""
    return write_private(path, page(result))


def write_private(path: Path, text: str) -> Path:
    """Write a text file, in one step and readable by its owner alone; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    return path


def page(result: UnlearnResult) -> str:
    """Return the page of a result as HTML text."""
    kind_of_request = "Erasure request" if result.forgotten else "Request"
    title = f"{kind_of_request} {result.request}" if result.request else "Erasure: nothing was changed"
    title += "" if result.is_complete else ", incomplete: files that hold what was forgotten are left"
    kind = as_plain(result.guarantee)
    parts = [
        f"<h1>{escape(title)}</h1>",
        _table(_summary(result)),
        "<h2>What is guaranteed</h2>",
        _table((name, value) for name, value in kind.items() if name != "assumptions" and value not in ((), None)),
        *_assumptions(getattr(result.guarantee, "assumptions", ())),
        "<h2>What it cost, beside a retrain</h2>",
        _table(_cost(result)),
        "<h2>What was erased and checked</h2>",
        _table((name, value) for name, value in result.audit.items() if name != "medium"),
        *(f"<p>{escape(text)}</p>" for name, text in result.audit.items() if name == "medium"),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _summary(result: UnlearnResult) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [
        ("record", result.record),
        ("method", result.method),
        ("rows forgotten", result.forgotten),
        *(
            (name, rows)
            for name, rows in (("rows amended", result.amended), ("rows admitted", result.admitted))
            if rows
        ),
        ("trained shards", ", ".join(map(str, result.shards))),
    ]
    if result.entries:
        rows.append(("entries of the queue", ", ".join(map(str, result.entries))))
    if result.left_out:
        rows.append(("shards left out (too few rows)", ", ".join(map(str, result.left_out))))
    return rows + [("note", note) for note in result.notes]


def _cost(result: UnlearnResult) -> list[tuple[str, str]]:
    cost = result.cost
    return [
        ("stages rebuilt", f"{cost.stages_rebuilt} of {cost.stages}"),
        ("row visits (rows times epochs)", f"{cost.visits:,} of {cost.retrain_visits:,} for a retrain"),
        ("optimizer steps", f"{cost.steps:,}"),
        ("seconds of training", f"{cost.seconds:.2f} of {cost.retrain_seconds:.2f} for a retrain"),
    ]


def _assumptions(assumptions: Iterable[Assumption]) -> list[str]:
    rows = "".join(
        f"<tr><td>{escape(a.name)}</td><td>{escape(a.statement)}</td><td>{a.how}</td><td>{a.holds}</td></tr>"
        for a in assumptions
    )
    if not rows:
        return []
    head = "<tr><th>assumption</th><th>statement</th><th>how it is known</th><th>holds</th></tr>"
    return ["<h2>Under which assumptions</h2>", f"<table>{head}{rows}</table>"]


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    cells = (f"<tr><th>{escape(str(n).replace('_', ' '))}</th><td>{_value(v)}</td></tr>" for n, v in rows)
    return f'<table class="facts">{"".join(cells)}</table>'


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "<br>".join(_value(item) for item in value) or "none"
    return f"<code>{escape(str(value))}</code>" if isinstance(value, Path) else escape(str(value))
