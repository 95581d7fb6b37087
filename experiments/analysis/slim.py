"""A run as it is kept: one small file with what analysis reads, exact, and nothing of the machine or of any problem.

    <run_id>.tar.xz    <run_id>/config.json, provenance.json, status.json, run.yaml, v_hack.json, metrics.jsonl, eval.jsonl

Left out: rollouts, checkpoints, directions, cosines of single modules (modules.jsonl: two thirds of the size), logs.
Rows are kept byte for byte; a row that holds text other than its mode and its label names is refused. Of the other files:

    addresses and credentials of services, run_dir    left out of config.json
    an absolute path                                  its last part; where it is a whole value, with a mark of the full path,
                                                      so that two files of one name stay two
    ids of pairs and their problems                   left out of v_hack.json; pairs_hash stays
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import re
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

from common import atomic_file
from common.errors import ConfigError
from common.scopes import Scope, fields
from common.settings import TrainerSettings
from experiments.analysis.run_files import json_object
from rankspace.errors import RankspaceError
from rankspace.run_source import KEPT, open_source

ROWS = ("metrics.jsonl", "eval.jsonl")
OBJECTS = ("config.json", "provenance.json", "status.json", "v_hack.json")
TEXT = "run.yaml"
LEFT_OUT = {
    "config.json": fields(TrainerSettings, Scope.PLACE) | {"run_dir"},
    "v_hack.json": frozenset({"pair_ids", "problem_ids"}),
}
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # all the text that a value of a row may be: the mode of an evaluation
_ADDRESS = re.compile(r"\brediss?://[^\s'\"]+")
_PATH = re.compile(r"(?<![\w.~/@-])/(?:[^\s'\",:;=/]+/)*([^\s'\",:;=/]+)/?")


def kept_in(folder: Path) -> list[Path]:
    """The kept runs of a folder, by name."""
    return sorted(path for path in folder.glob(f"*{KEPT}") if not path.name.startswith("."))


def contents(path: Path) -> dict[str, bytes]:
    """What is kept of a run directory or a kept run, by file name; of a kept run: what it holds. ConfigError."""
    try:
        source = open_source(path)
        found = {name: source.read(name) for name in (*ROWS, *OBJECTS, TEXT)}
    except RankspaceError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; is this a run directory?") from None
    slim: dict[str, bytes] = {}
    for name, data in found.items():
        if data is None:
            continue
        if name in ROWS:
            _require_numbers(path / name, data)
            slim[name] = data
        elif name in OBJECTS:
            slim[name] = _object(path / name, data)
        else:
            slim[name] = without_machine(data.decode()).encode()
    return slim


def write(files: dict[str, bytes], run_id: str, folder: Path) -> Path:
    """Write `contents` into the folder, whole or not at all: the same bytes for the same contents. Raises OSError."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            member = tarfile.TarInfo(f"{run_id}/{name}")
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    path = folder / f"{run_id}{KEPT}"
    atomic_file.write(path, lzma.compress(archive.getvalue(), preset=6 | lzma.PRESET_EXTREME))
    return path


def config(values: dict[str, Any]) -> dict[str, Any]:
    """Settings as a kept run has them."""
    return {name: _value(value) for name, value in values.items() if name not in LEFT_OUT["config.json"]}


def without_machine(text: str) -> str:
    """Prose, such as a command: of each absolute path the last part, no address of a service."""
    return _PATH.sub(r"\1", _ADDRESS.sub("redis://...", text))


def _object(path: Path, data: bytes) -> bytes:
    values = json_object(path, data)
    left_out = LEFT_OUT.get(path.name, frozenset())
    kept = {name: _value(value) for name, value in values.items() if name not in left_out}
    return (json.dumps(kept, indent=1) + "\n").encode()


def _value(value: Any) -> Any:
    """A value of JSON without places of the machine: a whole path is marked, a path inside a text is not."""
    if isinstance(value, dict):
        return {name: _value(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_value(one) for one in value]
    if not isinstance(value, str):
        return value
    if value.startswith("/") and len(value.split()) == 1:
        mark = hashlib.sha256(value.encode()).hexdigest()[:8]
        return f"{PurePosixPath(value).name}@{mark}"
    return without_machine(value)


def _require_numbers(path: Path, data: bytes) -> None:
    """ConfigError where a row holds text, which could be that of a problem."""
    for number, line in enumerate(data.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            raise ConfigError(f"{path}:{number}: not JSON; only a run whose rows are whole can be kept") from None
        for name, value in row.items() if isinstance(row, dict) else (("row", line),):
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            if not (name == "mode" and _NAME.fullmatch(str(value))) and not all(map(_is_number, inner)):
                raise ConfigError(
                    f"{path}:{number}: field '{name}' holds text, which is not kept; take it out of the run"
                )


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)
