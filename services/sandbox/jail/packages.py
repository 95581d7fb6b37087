"""Third-party packages that a deployment lets programs import, off by default: the published evaluation has none.

    Executor(packages=("numpy",))  ──> found here, in our own environment ──> fork server imports it once ──> jobs have it

Each is found by its folder and read-only; nothing else of site-packages is on a path or readable. Costs and risks:
docs/grading.md. `ALLOWED` is closed on purpose: each one's fork behaviour, threads and licence to run code were looked at.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

ALLOWED = ("sortedcontainers", "numpy")
# One thread: a fork keeps only the thread that forks, and threads' stacks would count as the job's memory.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def find(names: Iterable[str]) -> dict[str, list[str]]:
    """Name -> folders of the package: its own first, then that of its shared libraries. Raises ValueError with what to do."""
    found = {}
    for name in names:
        if name not in ALLOWED:
            raise ValueError(f"package {name!r} is not on the allow-list: choose of {', '.join(ALLOWED)}")
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"package {name!r} is allowed and not installed: install it or take it from the setting")
        folder = Path(next(iter(spec.submodule_search_locations))).resolve()
        libraries = folder.with_name(f"{name}.libs")
        found[name] = [str(folder), *([str(libraries)] if libraries.is_dir() else [])]
    return found


class _Finder:
    """Finds the allowed packages by folder; their modules are found by the usual machinery from there."""

    def __init__(self, folders: dict[str, list[str]]) -> None:
        self.folders = folders

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.folders:
            return None
        folder = self.folders[name][0]
        return importlib.util.spec_from_file_location(
            name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
        )


def load(folders: dict[str, list[str]]) -> list[str]:
    """In the fork server, before its walls: import the packages. Returns the folders that jobs may read."""
    if not folders:
        return []
    finder: Any = _Finder(folders)
    sys.meta_path.append(finder)
    os.environ.update(_ENVIRONMENT)
    for name in folders:
        __import__(name)
    return [folder for places in folders.values() for folder in places]
