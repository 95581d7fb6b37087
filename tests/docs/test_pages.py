"""What README and docs/ name exists: links, anchors, make targets, commands with their options, paths, tests."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache

import pages
import pytest

TARGETS = set(re.findall(r"^([a-z-]+):", (pages.ROOT / "Makefile").read_text(), re.M))
COMMANDS = sorted({(c.module, c.words[0] if c.words and re.fullmatch(r"[a-z-]+", c.words[0]) and c.words[0][0] != "-" else "")
                   for page in pages.PAGES for c in pages.commands(page)})  # fmt: skip
NO_SUBCOMMANDS = {"services.trainer", "services.ref_server", "common.acl", "common.metrics"}


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda p: str(p.relative_to(pages.ROOT)))
def test_links_and_paths_resolve(page):
    for link in pages.links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor and target.suffix == ".md":
            assert anchor in pages.anchors(target), f"{page.name}: {link} has no such heading"
    for path in pages.paths(page):
        assert list(pages.ROOT.glob(path.rstrip("/"))), f"{page.name} names {path}"
    for name in pages.tests_named(page):
        assert any(f"def {name}(" in p.read_text() for p in (pages.ROOT / "tests").rglob("test_*.py")), name


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda p: str(p.relative_to(pages.ROOT)))
def test_make_targets_exist(page):
    assert pages.make_targets(page) <= TARGETS, pages.make_targets(page) - TARGETS


@cache
def helped(module: str, command: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", module, *([command] if command else []), "--help"]
    return subprocess.run(argv, capture_output=True, text=True, cwd=pages.ROOT, timeout=120)


@pytest.mark.parametrize(("module", "command"), COMMANDS, ids=lambda part: str(part) or "-")
def test_commands_answer_help(module, command):
    place = pages.ROOT / module.replace(".", "/")
    assert (place / "__main__.py").is_file() or place.with_suffix(".py").is_file(), module
    if module == "deploy" or module in NO_SUBCOMMANDS:  # deploy's commands take no options
        assert not command or f"\n  {command} " in helped(module, "").stdout
        return
    done = helped(module, command)
    assert done.returncode == 0, f"python -m {module} {command} --help: {done.stderr[-300:]}"


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda p: str(p.relative_to(pages.ROOT)))
def test_options_that_pages_use_exist(page):
    for c in pages.commands(page):
        command = next((w for w in c.words if re.fullmatch(r"[a-z-]+", w) and not w.startswith("-")), "")
        command = command if (c.module, command) in COMMANDS else ""
        if c.flags and c.module != "deploy":
            options = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]*)", helped(c.module, command).stdout))
            assert set(c.flags) <= options | {"--help"}, f"{c.page}: python -m {c.module} {' '.join(c.words)}"


def test_the_index_lists_every_page():
    listed = {link.partition("#")[0] for link in pages.links(pages.ROOT / "docs/README.md")}
    there = {p.name for p in (pages.ROOT / "docs").glob("*.md")} - {"README.md"}
    assert there <= listed, there - listed


def test_the_picture_is_well_formed_and_stands_alone():
    from xml.etree import ElementTree

    picture = pages.ROOT / "docs/images/loop.svg"
    root = ElementTree.parse(picture).getroot()
    words = " ".join(root.itertext())
    for part in ("trainer", "ref_server", "sandbox", "rollouts", "delta_S", "proof", "published grade", "protected oracle",
                 "Prometheus", "Grafana", "prefers-color-scheme"):  # fmt: skip
        assert part in words, part
    assert "href" not in picture.read_text() and "<script" not in picture.read_text()


def test_these_checks_can_fail(tmp_path):
    page = tmp_path / "bad.md"
    page.write_text("[x](gone.md) `make nonsense` `experiments/gone.py` `python -m experiments run --nope`\n"
                    "```bash\nmake down up  # comment make no\nA=1 make ps\n```\n`test_gone`")  # fmt: skip
    assert pages.links(page) == ["gone.md"] and pages.paths(page) == {"experiments/gone.py"}
    assert pages.make_targets(page) == {"nonsense", "down", "up", "ps"} and pages.tests_named(page) == {"test_gone"}
    assert pages.commands(page)[0].flags == ["--nope"]
