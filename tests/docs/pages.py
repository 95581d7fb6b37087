"""What the documentation names: links, make targets, commands, paths, tests. Pure; the tests judge them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(p for p in (ROOT / "docs").rglob("*.md") if p.name != "licences.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
LINK = re.compile(r"\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")
MAKE = re.compile(r"(?:^|&& )(?:[A-Z_]+=\S+ )*make ((?:[a-z][a-z-]*(?: |$))+)")
MODULE = re.compile(r"python -m ([a-z_]+(?:\.[a-z_]+)*)((?: [^|&;>#`]*)?)")


@dataclass(frozen=True)
class Command:
    """`python -m MODULE WORDS...` as a page writes it."""

    page: str
    module: str
    words: tuple[str, ...]

    @property
    def flags(self) -> list[str]:
        return [word.split("=")[0] for word in self.words if re.fullmatch(r"--[a-z][a-z-]*(=.*)?", word)]


def text(page: Path) -> str:
    return page.read_text()


def spans(page: Path) -> list[str]:
    """Inline code, outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text(page)))


def lines(page: Path) -> list[str]:
    """Lines of shell blocks, comments and prompts off, continued lines joined."""
    blocks = [body for kind, body in FENCE.findall(text(page)) if kind in ("bash", "sh", "")]
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [re.sub(r"(^|\s)#.*$", "", line).strip().removeprefix("$ ") for line in joined.splitlines()]


def links(page: Path) -> list[str]:
    """Relative link targets, with their anchors."""
    return [t for t in LINK.findall(FENCE.sub("", text(page))) if not re.match(r"[a-z]+:", t)]


def anchors(page: Path) -> set[str]:
    """Anchors of a page: headings as GitHub slugs them, and explicit ids."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", text(page)), re.M)
    slugs = {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}
    return slugs | set(re.findall(r"""(?:id|name)=["']([^"']+)["']""", text(page)))


def make_targets(page: Path) -> set[str]:
    """Targets of `make ...` in code."""
    found = [m for code in (*spans(page), *lines(page)) for m in MAKE.findall(code)]
    return {target for words in found for target in words.split()}


def commands(page: Path) -> list[Command]:
    """Every `python -m` of a module of this repository."""
    found = []
    for code in (*spans(page), *lines(page)):
        for module, rest in MODULE.findall(code):
            if (ROOT / module.split(".")[0]).is_dir():
                found.append(Command(page.name, module, tuple(rest.split())))
    return found


def paths(page: Path) -> set[str]:
    """Inline code that looks like a path into this repository: with a slash, below one of its folders."""
    rooms = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")} - {
        "runs",
        "report",
        "secrets",
    }
    return {
        s for s in spans(page) if re.fullmatch(r"[\w.*-]+(/[\w.*-]+)*/?", s) and "/" in s and s.split("/")[0] in rooms
    }


def tests_named(page: Path) -> set[str]:
    """Test functions a page points to."""
    return {s for s in spans(page) if re.fullmatch(r"test_[a-z0-9_]+", s)}
