"""Which runs lie in one folder or several: run directories and kept runs together, each run once.

A directory whose run has not said a word yet (a direction or services are being made) is passed over; `python -m experiments
status` tells of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.errors import ConfigError
from experiments.analysis import slim
from experiments.analysis.run_files import Run, read_run
from rankspace.run_source import is_kept, name_of

Roots = Path | Sequence[Path]
"""One folder of runs or several; each a run itself, or a folder of run directories and kept runs."""


def named(roots: Roots) -> str:
    """The folders as they were given, for messages."""
    return " ".join(map(str, _each(roots)))


def _each(roots: Roots) -> tuple[Path, ...]:
    return (roots,) if isinstance(roots, Path) else tuple(map(Path, roots))


def find_runs(roots: Roots, may_be_empty: bool = False) -> list[Path]:
    """Run directories and kept runs under the folders (or these themselves), by name.

    ConfigError when a folder is not there, and, unless it may be so, when there is no run in any.
    """
    found: dict[Path, Path] = {}
    silent = 0
    for root in _each(roots):
        paths = _under(root)
        begun = [path for path in paths if _has_said_a_word(path)]
        silent += len(paths) - len(begun)
        found |= {path.resolve(): path for path in begun}
    if silent and not found and not may_be_empty:
        raise ConfigError(
            f"--runs {named(roots)}: none of its {silent} runs has said a word yet; `python -m experiments status` tells of "
            "them"
        )
    if not found and not may_be_empty:
        raise ConfigError(
            f"--runs {named(roots)}: no run in it (no */provenance.json, no kept run); start one with "
            "`python -m experiments run`"
        )
    return sorted(found.values(), key=lambda path: (name_of(path), str(path)))


def _under(root: Path) -> list[Path]:
    if is_kept(root) and root.is_file():
        return [root]
    if not root.is_dir():
        raise ConfigError(f"--runs {root}: no such directory; give the directory that holds the run directories")
    itself = [root] if (root / "provenance.json").is_file() else []
    return itself + [path.parent for path in root.glob("*/provenance.json")] + slim.kept_in(root)


def _has_said_a_word(path: Path) -> bool:
    return is_kept(path) or any((path / name).is_file() for name in ("status.json", "metrics.jsonl"))


def read_runs(roots: Roots, up_to: int | None = None, may_be_empty: bool = False) -> list[Run]:
    """Every run under the folders, by name; `up_to` as in `read_run`, the rest as in `find_runs`.

    A finished run that is found in two places counts once. ConfigError when their contents differ.
    """
    return _each_once([read_run(path, up_to) for path in find_runs(roots, may_be_empty)])


def _each_once(runs: list[Run]) -> list[Run]:
    """A directory comes before its kept run, since it holds more. Two directories of one folder are left to the caller."""
    first: dict[str, Run] = {}
    dropped: set[int] = set()
    for run in sorted(runs, key=lambda run: is_kept(run.path)):
        other = first.setdefault(run.run_id, run)
        beside = run.path.parent == other.path.parent and not is_kept(run.path)
        both = run.finished and other.finished
        if other is run or beside or (not both and run.status != other.status):
            continue
        if slim.contents(other.path) == slim.contents(run.path):
            dropped.add(id(run))
        elif both:
            raise ConfigError(
                f"{run.run_id} is in {other.path} and in {run.path}, with other contents; move one of them away"
            )
    return [run for run in runs if id(run) not in dropped]
