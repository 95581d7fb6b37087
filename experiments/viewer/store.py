"""The index as a SQLite file: its tables, and opening it for the writer or for a reader.

    runs      a run directory              files     a step or cos file of one, and how far it has been read
    rollouts  a completion: what lists filter and sort by, and where in the files the rest is
    bodies    its text, for search         found     the full-text index over bodies
    cosines   what measure-cos wrote

It is a cache: of another schema version, damaged or deleted, it is made anew from the run files.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote

from common.errors import ConfigError

VERSION = 3
SCHEMA = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, run_id TEXT, arm TEXT, seed INTEGER, preset TEXT, state TEXT,
    steps INTEGER, model TEXT, about TEXT NOT NULL
);
CREATE TABLE files (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE, name TEXT NOT NULL,
    size INTEGER NOT NULL, mtime INTEGER NOT NULL, done INTEGER NOT NULL, tail BLOB NOT NULL,
    torn INTEGER NOT NULL, open INTEGER NOT NULL, bad INTEGER NOT NULL, UNIQUE (run, name)
);
CREATE TABLE rollouts (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL, file INTEGER NOT NULL REFERENCES files ON DELETE CASCADE,
    start INTEGER NOT NULL, line INTEGER NOT NULL, group_id TEXT NOT NULL, idx INTEGER NOT NULL, step INTEGER NOT NULL,
    purpose TEXT NOT NULL, mode TEXT NOT NULL, problem TEXT NOT NULL, version INTEGER, label TEXT, modification TEXT,
    status TEXT NOT NULL, finish TEXT, published INTEGER, oracle INTEGER, forged INTEGER NOT NULL, reward REAL,
    advantage REAL, tokens INTEGER NOT NULL, logprob REAL, digest TEXT NOT NULL, cos REAL, cos_at TEXT
);
CREATE INDEX rollouts_place ON rollouts (run, step, id);
CREATE INDEX rollouts_file ON rollouts (file);
CREATE INDEX rollouts_group ON rollouts (run, group_id, idx);
CREATE INDEX rollouts_label ON rollouts (label, run, step);
CREATE INDEX rollouts_forged ON rollouts (run, step) WHERE forged;
CREATE INDEX rollouts_problem ON rollouts (problem, purpose);
CREATE INDEX rollouts_hacks ON rollouts (label IS 'Reward Hack', step, id);
CREATE INDEX rollouts_reward ON rollouts (reward);
CREATE INDEX rollouts_advantage ON rollouts (advantage);
CREATE INDEX rollouts_tokens ON rollouts (tokens);
CREATE INDEX rollouts_logprob ON rollouts (logprob);
CREATE INDEX rollouts_cos ON rollouts (cos);
CREATE TABLE bodies (id INTEGER PRIMARY KEY, text TEXT NOT NULL, problem TEXT NOT NULL, notes TEXT NOT NULL);
CREATE VIRTUAL TABLE found USING fts5 (
    text, problem, notes, content='bodies', content_rowid='id', tokenize="unicode61 remove_diacritics 0 tokenchars '_'"
);
CREATE TRIGGER bodies_in AFTER INSERT ON bodies BEGIN
    INSERT INTO found (rowid, text, problem, notes) VALUES (new.id, new.text, new.problem, new.notes);
END;
CREATE TRIGGER bodies_out AFTER DELETE ON bodies BEGIN
    INSERT INTO found (found, rowid, text, problem, notes) VALUES ('delete', old.id, old.text, old.problem, old.notes);
END;
CREATE TRIGGER rollouts_out AFTER DELETE ON rollouts BEGIN DELETE FROM bodies WHERE id = old.id; END;
CREATE TABLE cosines (
    file INTEGER NOT NULL REFERENCES files ON DELETE CASCADE, run INTEGER NOT NULL, group_id TEXT NOT NULL,
    idx INTEGER NOT NULL, digest TEXT NOT NULL, cos REAL NOT NULL, cos_at TEXT NOT NULL
);
CREATE INDEX cosines_row ON cosines (run, group_id, idx);
CREATE INDEX cosines_file ON cosines (file);
"""


def open_writer(path: Path) -> sqlite3.Connection:
    """The index for writing, made (anew) when it is absent, of another version or damaged. ConfigError: no place for it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _writer(path)
        except sqlite3.OperationalError:  # cannot be opened, or locked: nothing that a new file would cure
            raise
        except sqlite3.DatabaseError:
            forget(path)
            return _writer(path)
    except (OSError, sqlite3.OperationalError) as error:
        raise ConfigError(
            f"the index {path} cannot be written ({error}); give --index FILE in a folder that can"
        ) from None


def _writer(path: Path) -> sqlite3.Connection:
    base = _connect(f"file:{quote(str(path))}?mode=rwc")
    if base.execute("PRAGMA user_version").fetchone()[0] != VERSION:
        base.close()
        forget(path)
        base = _connect(f"file:{quote(str(path))}?mode=rwc")
        base.execute("PRAGMA journal_mode = WAL")  # readers go on reading while a file is indexed
        base.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
    base.execute("PRAGMA synchronous = NORMAL")
    base.execute("PRAGMA foreign_keys = ON")
    base.execute("PRAGMA recursive_triggers = ON")
    base.execute("PRAGMA cache_size = -65536")
    return base


def open_reader(path: Path) -> sqlite3.Connection:
    """The index for reading: statements that would change it are refused."""
    base = _connect(f"file:{quote(str(path))}?mode=rw")  # a WAL reader must be able to map the -shm file
    base.execute("PRAGMA query_only = ON")
    base.execute("PRAGMA cache_size = -32768")
    base.row_factory = sqlite3.Row
    return base


def forget(path: Path) -> None:
    """Remove an index, with what SQLite keeps beside it."""
    for tail in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + tail).unlink(missing_ok=True)


def _connect(uri: str) -> sqlite3.Connection:
    base = sqlite3.connect(uri, uri=True, timeout=30.0, isolation_level=None, check_same_thread=False)
    base.execute("PRAGMA schema_version")  # fails here, and not later, for a file that is no database
    return base
