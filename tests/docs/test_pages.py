"""The pages a reader meets. Their Python blocks are run by the conftest.py of the repository."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:|#)([^)#\s]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_of_a_page_leads_to_a_file(page):
    links = LINK.findall(page.read_text(encoding="utf-8"))
    broken = [link for link in links if not (page.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize("adapter", ["Lightning", "Keras"])
def test_each_file_of_an_adapter_has_its_row_in_the_design_page(adapter):
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    section = page.partition(f"## The files of the {adapter} adapter")[2].partition("\n## ")[0]
    rows = [name for cell in re.findall(r"^\| (`.+?) \|", section, flags=re.M) for name in re.findall(r"`(\w+)`", cell)]
    files = {file.stem for file in ROOT.glob(f"pybrush_{adapter.lower()}/*.py")} - {"__init__"}
    assert sorted(rows) == sorted(files)
