"""The page of a result: self-contained, escaped, private."""

import re
import stat
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pybrush.guarantee import Assumption, Exact
from pybrush.result import UnlearnCost, UnlearnResult
from pybrush.tables import show_result

HOSTILE = "<script>alert('x')</script>&\"'"


class Reader(HTMLParser):
    """Collects tags, attributes and text as a browser would see them."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def result():
    return UnlearnResult(
        model=None,
        guarantee=Exact(HOSTILE, (HOSTILE,), (Assumption(HOSTILE, HOSTILE, "declared", "unknown"),)),
        method=HOSTILE,
        request=7,
        cost=UnlearnCost(2, 6, 1234, 56, 1.5, 98765, 9.0),
        audit={HOSTILE: [HOSTILE], "searched_files": 3},
        record=Path("/tmp") / HOSTILE.replace("/", "_"),
        shards=(0, 2),
        left_out=(1,),
        forgotten=50,
        notes=(HOSTILE,),
        salt="aa" * 16,
    )


def test_every_value_is_escaped_and_nothing_is_loaded_from_elsewhere(result, tmp_path):
    page = result.report(tmp_path / "deep" / "page.html")
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    assert not {"script", "img", "link", "iframe"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name in ("src", "href", "onload")]
    assert sum(text == HOSTILE for text in reader.texts) >= 7


def test_a_page_says_guarantee_cost_and_what_was_left_out_but_not_the_salt(result, tmp_path):
    text = result.report(tmp_path / "page.html").read_text(encoding="utf-8")
    for expected in ("Exact", "2 of 6", "1,234 of 98,765", "1.50 of 9.00", "left out", "declared", "unknown"):
        assert expected in text
    assert "aa" * 16 not in text


def test_a_page_is_private_and_replaces_an_older_one(result, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("older")
    result.report(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "older" not in path.read_text(encoding="utf-8")
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


def test_the_command_shows_rows_that_were_amended_and_admitted_and_leaves_the_lines_out_where_there_are_none(
    result, capsys
):
    show_result(result)
    assert not {"rows amended", "rows admitted"} & set(re.findall(r"rows \w+", capsys.readouterr().out))
    show_result(replace(result, amended=12, admitted=3456))
    shown = re.findall(r"rows (\w+)\s+\S\s+([\d,]+)", capsys.readouterr().out)
    assert shown == [("forgotten", "50"), ("amended", "12"), ("admitted", "3,456")]
