"""Keeping the index at the state of the run files: only what is new or changed is read, one transaction a file.

    for each run directory:  config, provenance, status ─> runs
      for each file of it:   size and mtime as recorded?          nothing to do
                             grown, and the old end still there?  read on from where the last whole member ended
                             anything else                        forget its rows, read it from the start

A scan may be stopped (or killed) anywhere: a file is in the index whole up to `files.done`, with the counts of what was
skipped, or it is not. Several scans may run at once, also in several processes.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from experiments.viewer import rows, store

INDEX = Path(".viewer") / "index.sqlite"
TAIL = 64  # bytes before `done` that must still be there: the checksum of the last member read is among them


@dataclass(frozen=True)
class Progress:
    """Where a scan stands, for the page. `changed` counts transactions since the index was opened."""

    scanning: bool = False
    files_done: int = 0
    files: int = 0
    changed: int = 0
    error: str = ""


@dataclass(frozen=True)
class _File:
    """A row of `files`."""

    id: int
    size: int
    mtime: int
    done: int
    tail: bytes


def run_dirs(root: Path) -> list[Path]:
    """Directories that hold a run's settings or rollouts: `root` itself, else its children; hidden ones are none."""
    if not root.is_dir():
        raise ConfigError(f"--runs {root}: no such directory; give the directory that holds the run directories")
    if _is_run(root):
        return [root]
    return sorted(path for path in root.iterdir() if not path.name.startswith(".") and _is_run(path))


def _is_run(path: Path) -> bool:
    return path.is_dir() and ((path / "config.json").is_file() or (path / "rollouts").is_dir())


def run_path(root: Path, name: str) -> Path:
    """Where the run lies that the index calls `name`."""
    return root if _is_run(root) else root / name


class Indexer:
    """The one writer of a process. `scan` may be called from any thread, one at a time."""

    def __init__(self, root: Path, path: Path | None = None):
        """ConfigError when `root` is no directory or the index cannot be written."""
        run_dirs(root)
        self.root, self.path = root.resolve(), path or root / INDEX
        self.base = store.open_writer(self.path)
        self.progress = Progress()
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            self.base.close()

    def scan(self, stop: threading.Event | None = None) -> None:
        """One look at every file. ConfigError when the runs are gone; sqlite3.Error when the disk is full."""
        with self._lock:
            found = run_dirs(self.root)
            self._forget_runs({path.name for path in found})
            work = [(self._run(path), path, self._files(path)) for path in found]
            total, done = sum(len(files) for *_, files in work), 0
            for run, path, files in work:
                self._forget_files(run, {file.name for file in files})
                for file in files:
                    if stop is not None and stop.is_set():
                        return
                    self._look(True, done, total)
                    self._file(run, path / "rollouts" / file.name)
                    done += 1
            self._look(False, done, total)

    def _look(self, scanning: bool, done: int, total: int) -> None:
        self.progress = Progress(scanning, done, total, self.progress.changed)

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """A transaction; what is half done when an error comes is undone."""
        self.base.execute("BEGIN IMMEDIATE")
        try:
            yield self.base
        except BaseException:
            self.base.execute("ROLLBACK")
            raise
        self.base.execute("COMMIT")
        self.progress = Progress(
            self.progress.scanning, self.progress.files_done, self.progress.files, self.progress.changed + 1
        )

    @staticmethod
    def _files(run: Path) -> list[Path]:
        """Step files first: cosines belong to rows."""
        folder = run / "rollouts"
        return [*sorted(folder.glob("step_*.jsonl.gz")), *sorted(folder.glob("cos_*.jsonl"))]

    def _run(self, path: Path) -> int:
        """The run's id; its row is renewed when one of its small files has changed."""
        about = json.dumps([_stamp(path / f"{name}.json") for name in ("config", "provenance", "status")])
        known = self.base.execute("SELECT id, about FROM runs WHERE name = ?", (path.name,)).fetchone()
        if known and known[1] == about:
            return int(known[0])
        config, made, status = (_object(path / f"{name}.json") for name in ("config", "provenance", "status"))
        values = (
            _text(config.get("run_id")), _text(config.get("arm") or made.get("arm")), _whole(config.get("seed")),
            _text(made.get("preset")), _text(status.get("state")), _whole(status.get("steps")),
            _text(config.get("model")), about, path.name,
        )  # fmt: skip
        with self._change() as base:
            base.execute("INSERT OR IGNORE INTO runs (name, about) VALUES (?, '')", (path.name,))
            base.execute(
                "UPDATE runs SET run_id = ?, arm = ?, seed = ?, preset = ?, state = ?, steps = ?, model = ?, about = ?"
                " WHERE name = ?",
                values,
            )
        return int(self.base.execute("SELECT id FROM runs WHERE name = ?", (path.name,)).fetchone()[0])

    def _forget_runs(self, names: set[str]) -> None:
        for (name,) in self.base.execute("SELECT name FROM runs").fetchall():
            if name not in names:
                with self._change() as base:
                    base.execute("DELETE FROM runs WHERE name = ?", (name,))

    def _forget_files(self, run: int, names: set[str]) -> None:
        for number, name in self.base.execute("SELECT id, name FROM files WHERE run = ?", (run,)).fetchall():
            if name not in names:
                with self._change() as base:
                    base.execute("DELETE FROM files WHERE id = ?", (number,))
                    _join_cosines(base, run, _step_of(name))

    def _file(self, run: int, path: Path) -> None:
        try:
            stat = path.stat()
            known = self._known(run, path.name)
            if known and (known.size, known.mtime) == (stat.st_size, stat.st_mtime_ns):
                return
            if path.name.startswith("cos_"):
                self._cosines(run, path, stat.st_size, stat.st_mtime_ns)
                return
            with open(path, "rb") as file:
                whole = known is None or known.size == 0 or not _goes_on(file, known)
                file.seek(0 if whole or known is None else known.done)
                data = file.read()
            start = 0 if whole or known is None else known.done
            self._members(run, path.name, (stat.st_size, stat.st_mtime_ns), data, start)
        except FileNotFoundError:  # a resumed trainer has cut it off; the next scan sees what is there then
            return

    def _known(self, run: int, name: str) -> _File | None:
        row = self.base.execute(
            "SELECT id, size, mtime, done, tail FROM files WHERE run = ? AND name = ?", (run, name)
        ).fetchone()
        return _File(*row) if row else None

    def _members(self, run: int, name: str, stamp: tuple[int, int], data: bytes, start: int) -> None:
        """Index the members of `data`, the file's bytes from `start` on; start 0 replaces what was known of it."""
        with self._change() as base:
            known = self._known(run, name)
            if known is not None and start and known.done != start:
                return  # another process has indexed it meanwhile
            if known is not None and not start:
                base.execute("DELETE FROM files WHERE id = ?", (known.id,))
            if known is None or not start:
                base.execute(
                    "INSERT INTO files (run, name, size, mtime, done, tail, torn, open, bad)"
                    " VALUES (?, ?, 0, 0, 0, x'', 0, 0, 0)",
                    (run, name),
                )
                known = self._known(run, name)
            assert known is not None
            done, torn, bad, number = start, 0, 0, _next_id(base)
            for member in rows.members(data, start):
                done = member.end
                torn += member.text is None
                number, skipped = _insert(base, run, known.id, member, number)
                bad += skipped
            end = done - start
            tail = (known.tail + data[:end])[-TAIL:] if start else data[max(0, end - TAIL) : end]
            base.execute(
                "UPDATE files SET size = ?, mtime = ?, done = ?, tail = ?, torn = torn + ?, open = ?, bad = bad + ? WHERE id = ?",
                (*stamp, done, tail, torn, int(end < len(data)), bad, known.id),
            )
            _join_cosines(base, run, _step_of(name))

    def _cosines(self, run: int, path: Path, size: int, mtime: int) -> None:
        parsed = [rows.parse_cos(line) for line in path.read_bytes().splitlines() if line.strip()]
        good = [row for row in parsed if row is not None]
        with self._change() as base:
            base.execute("DELETE FROM files WHERE run = ? AND name = ?", (run, path.name))
            made = base.execute(
                "INSERT INTO files (run, name, size, mtime, done, tail, torn, open, bad) VALUES (?, ?, ?, ?, ?, x'', 0, 0, ?)",
                (run, path.name, size, mtime, size, len(parsed) - len(good)),
            )
            base.executemany(
                "INSERT INTO cosines (file, run, group_id, idx, digest, cos, cos_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(made.lastrowid, run, r.group_id, r.index, r.tokens, r.cos, r.at) for r in good],
            )
            _join_cosines(base, run, _step_of(path.name))


def _goes_on(file: Any, known: _File) -> bool:
    """Whether the file still begins with what has been indexed of it."""
    file.seek(known.done - len(known.tail))
    return bool(file.read(len(known.tail)) == known.tail) and known.done > 0


def _next_id(base: sqlite3.Connection) -> int:
    return int(base.execute("SELECT coalesce(max(id), 0) + 1 FROM rollouts").fetchone()[0])


def _insert(base: sqlite3.Connection, run: int, file: int, member: rows.Member, number: int) -> tuple[int, int]:
    """(next free id, lines that are no rows)."""
    made, bodies, bad = [], [], 0
    for line, raw in enumerate((member.text or b"").split(b"\n")):
        if not raw.strip():
            continue
        row = rows.parse(raw)
        if row is None:
            bad += 1
            continue
        problem, mean = str(row.problem_id), row.mean_logprob
        made.append((
            number, run, file, member.start, line, row.group_id, row.index, row.step, row.purpose, row.mode, problem,
            row.policy_version, row.label, row.test_modification, row.status, row.finish_reason, row.published_correct,
            row.oracle_correct, row.forged, row.reward, row.advantage, len(row.token_ids), mean,
            rows.token_digest(row.token_ids),
        ))  # fmt: skip
        bodies.append((number, row.text, problem, "\n".join([row.reason, *rows.texts(row.evidence)])))
        number += 1
    base.executemany(
        "INSERT INTO rollouts (id, run, file, start, line, group_id, idx, step, purpose, mode, problem, version, label,"
        " modification, status, finish, published, oracle, forged, reward, advantage, tokens, logprob, digest)"
        f" VALUES ({', '.join('?' * 24)})",
        made,
    )
    base.executemany("INSERT INTO bodies (id, text, problem, notes) VALUES (?, ?, ?, ?)", bodies)
    return number, bad


def _join_cosines(base: sqlite3.Connection, run: int, step: int) -> None:
    """Give the step's rows the cosines measured on these very completions, and no others."""
    measured = (
        "SELECT EXISTS (SELECT 1 FROM cosines WHERE run = ?1)"
        " OR EXISTS (SELECT 1 FROM rollouts WHERE run = ?1 AND step = ?2 AND cos IS NOT NULL)"
    )
    if not base.execute(measured, (run, step)).fetchone()[0]:
        return
    base.execute(
        "UPDATE rollouts SET (cos, cos_at) = (SELECT c.cos, c.cos_at FROM cosines c WHERE c.run = rollouts.run"
        " AND c.group_id = rollouts.group_id AND c.idx = rollouts.idx AND c.digest = rollouts.digest LIMIT 1)"
        " WHERE run = ? AND step = ?",
        (run, step),
    )


def _step_of(name: str) -> int:
    digits = name.partition("_")[2].partition(".")[0]
    return int(digits) if digits.isascii() and digits.isdigit() else -1


def _stamp(path: Path) -> list[int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _object(path: Path) -> dict[str, Any]:
    """A small file of a run; {} when it is missing or being written: the next scan looks again."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return str(rows.printable(value)) if isinstance(value, str | int) else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int and abs(value) < 1 << 62 else None
