"""Prose fits 100 columns: a page can be read beside the code. Tables, code and what cannot be broken are left out."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MADE = {"metrics.md", "licences.md", "settings.md", "report.md"}  # written by a program
PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if page.name not in MADE and "node_modules" not in page.parts
)
MOST, UNBREAKABLE = 100, 60


def prose(text):
    """(number, line) outside fenced code, tables and computed blocks."""
    fenced = computed = False
    for number, line in enumerate(text.splitlines(), start=1):
        computed = (computed or line.startswith("<!-- computed")) and not line.startswith("<!-- end")
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not (fenced or computed or line.lstrip().startswith("|")):
            yield number, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_fits_100_columns(page):
    long = [
        (number, line)
        for number, line in prose(page.read_text())
        if len(line) > MOST
        and not line.startswith(("#", "!["))  # a heading or a picture is one line
        and max(map(len, re.findall(r"\[[^\]]*\]\([^)]*\)|`[^`]*`|\S+", line))) < UNBREAKABLE
    ]
    assert not long, long
