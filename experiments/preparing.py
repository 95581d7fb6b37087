"""What is on its way and no run yet: runs before their first word, and models that are being brought.

Reads what the work itself writes while it lasts:

    runs/<run_id>/progress.log                        extraction, SVD, loading (rankspace/progress.py)
    models/NAME.log, beside the folder NAME.partial   downloads and conversions (launch/bring.py)
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.model_names import MODELS
from experiments.design.presets import SMOLLM_MODEL
from experiments.launch import bring

PROGRESS, NAMED = "progress.log", "provenance.json"
WHERE = (MODELS, Path(SMOLLM_MODEL).parent)
TAIL = 4096


def runs(root: Path) -> list[Path]:
    """Directories under `root` (or `root` itself) whose run has not said a word yet: extraction, services, SVD."""
    found = {path.parent for mark in (PROGRESS, NAMED) for path in (root / mark, *root.glob(f"*/{mark}"))}
    return sorted(path for path in found if path.is_dir() and _silent_so_far(path))


def _silent_so_far(run: Path) -> bool:
    return any((run / mark).is_file() for mark in (PROGRESS, NAMED)) and not (run / "status.json").is_file()


def progress(run: Path) -> tuple[str, datetime | None]:
    """(the last line of a run's progress.log without its time of day, when it was written); without one ("", when the run
    was named, None if that is not known either)."""
    line, when = _last(run / PROGRESS)
    when = when or _last(run / NAMED)[1]
    clock, _, rest = line.partition(" ")
    return (rest if clock.count(":") == 2 else line), when


def models(folders: Iterable[Path] = WHERE, now: datetime | None = None) -> list[dict[str, Any]]:
    """Half-brought models: {model, state, age_s, note}. state: coming while a process is at it, else stopped."""
    table = []
    for staged in sorted(path for folder in folders for path in folder.glob(f"*{bring.PARTIAL}") if path.is_dir()):
        folder = staged.with_name(staged.name.removesuffix(bring.PARTIAL))
        line, when = _last(bring.log_of(folder))
        coming = _held(bring.lock_of(folder))
        note = line.removeprefix(f"{folder.name}: ") or "begun"
        table.append({
            "model": str(folder), "state": "coming" if coming else "stopped", "age_s": age(when, now),
            "note": note if coming else f"{note}; the same command goes on",
        })  # fmt: skip
    return table


def age(when: datetime | None, now: datetime | None = None) -> float | None:
    """Seconds since; None when it is not known."""
    return None if when is None else max(0.0, ((now or datetime.now(UTC)) - when).total_seconds())


def _last(path: Path) -> tuple[str, datetime | None]:
    """The last line of a log that grows, and when it was written."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
        return (lines[-1] if lines else ""), datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return "", None


def _held(lock: Path) -> bool:
    """Whether a living process holds the lock of a model folder."""
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
