"""Any model into a local folder: what it is, weighs and costs is told first; whole or not at all; started again it goes on.

    owner/name ── hub: files of one commit, each checked ─┐
    FILE.gguf  ── widened to safetensors ─────────────────┼─> FOLDER.partial ──> FOLDER with source.json
    a folder   ── checked, and copied where --out says ───┘

How far it is goes to stderr and to FOLDER.log.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.model_names import RECORD, Named, brought, parse, record, weight_files
from experiments.launch import gguf_file, hub
from rankspace.progress import span, ticking

Say = Callable[[str], None]
GIB = 2**30
EVERY_S = 10.0
PARTIAL = ".partial"  # ends the name of the folder that a model is brought into
HUB_BYTES_S = 50e6  # what a download is assumed to make when its time is told beforehand
GGUF_PARAMETERS_S = 20e6  # about a minute for 1.5 B parameters, where nothing else runs


def bring(name: str, out: Path | None = None, say: Say = print, dtype: str = "bfloat16") -> Path:
    """The folder that holds the model `name`, made now unless it is there.

    dtype: of the weights made from a GGUF file. ConfigError, one line: what cannot be had, and how else to get it here.
    """
    named = parse(name)
    named = named if out is None else Named(named.kind, named.name, out, named.revision)
    if named.kind == "folder":
        return _folder(Path(name), out, say)
    if brought(named):
        weight_files(named.folder)
        return named.folder
    with _alone(named.folder, say):
        if not brought(named):  # another process may have brought it meanwhile
            (_from_hub if named.kind == "hub" else _from_gguf)(named, say, dtype)
    return named.folder


def _from_hub(named: Named, say: Say, dtype: str) -> None:
    model = hub.look_up(named)
    staged = _staged(named.folder)
    left = model.size - _bytes(staged)
    say(
        f"{model.name} at {model.commit[:12]}: {model.size / GIB:.2f} GiB in {len(model.files)} files, licence "
        f"{model.licence}; {max(left, 0) / GIB:.2f} GiB to fetch, about {span(max(left / HUB_BYTES_S, 1))} at 50 MB/s; in memory "
        f"about as much as on disk"
    )
    _require_room(named.folder.parent, left)
    with _progress(named.folder, model.size, lambda: _bytes(staged), say):
        files = hub.download(model, named, staged)
    said = {"source": model.name, "revision": model.commit, "asked": named.revision, "licence": model.licence}
    _finish(named, staged, said | {"files": files}, say)


def _from_gguf(named: Named, say: Say, dtype: str) -> None:
    path, staged = Path(named.name), _staged(named.folder)
    facts = gguf_file.read_facts(path)
    size = facts.parameters * gguf_file.BYTES[dtype]
    say(
        f"{path}: {facts.name}, {facts.architecture}, {facts.parameters / 1e6:.0f} M parameters in {facts.quantised}, licence "
        f"{facts.licence}; {size / GIB:.2f} GiB in {dtype} on disk, {6 * facts.parameters / GIB:.1f} GiB of memory while it "
        f"is made, about {span(max(facts.parameters / GGUF_PARAMETERS_S, 1))}"
    )
    if not facts.chat_template:
        say(f"warning: {path} carries no chat template; runs will refuse it until its folder has a chat_template.jinja")
    _require_room(named.folder.parent, size)
    shutil.rmtree(staged, ignore_errors=True)
    with _progress(named.folder, size, lambda: _bytes(staged), say):
        gguf_file.convert(path, staged, dtype, say)
    files = {one.name: sha256(one) for one in sorted(staged.iterdir())}
    said = {"source": str(path.resolve()), "sha256": sha256(path), "quantised": facts.quantised, "dtype": dtype}
    _finish(named, staged, said | {"licence": facts.licence, "files": files}, say)


def _folder(folder: Path, out: Path | None, say: Say) -> Path:
    """Check a folder; copy it where `out` says another."""
    weight_files(folder)
    if out is None or out.resolve() == folder.resolve():
        return folder
    say(describe(folder))
    size = _bytes(folder)
    if (out / "config.json").is_file():
        raise ConfigError(f"--out {out} holds a model already; give another folder")
    _require_room(out.parent if out.parent.exists() else Path(), size)
    with _alone(out, say):
        staged = _staged(out)
        shutil.rmtree(staged, ignore_errors=True)
        with _progress(out, size, lambda: _bytes(staged), say):
            shutil.copytree(folder, staged)
        said = {
            "licence": (record(folder) or {}).get("licence"),
            "files": {one.name: sha256(one) for one in sorted(staged.iterdir()) if one.is_file()},
        }
        _finish(Named("folder", str(folder), out), staged, {"source": str(folder.resolve())} | said, say)
    return out


def describe(folder: Path) -> str:
    """One line: size and licence of a model folder, and where it came from."""
    files, said = weight_files(folder), record(folder) or {}
    size, licence = sum(file.stat().st_size for file in files), said.get("licence") or "see its LICENSE or README"
    source = f", from {said['source']} {said.get('revision') or ''}".rstrip() if "source" in said else ""
    return f"{folder}: {size / GIB:.2f} GiB in {len(files)} weight files, licence {licence}{source}"


def _finish(named: Named, staged: Path, said: Mapping[str, Any], say: Say) -> None:
    """Note what it is, then the name: a folder of that name is whole."""
    weight_files(staged)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    (staged / RECORD).write_text(json.dumps({**said, "brought": when}, indent=1) + "\n", encoding="utf-8")
    if named.folder.exists():
        try:
            named.folder.rmdir()
        except OSError:
            raise ConfigError(f"{named.folder} is in the way and holds no model; move it, or give --out") from None
    staged.rename(named.folder)
    say(f"{named.folder}: done, {len(said['files'])} files with their sha256 in {RECORD}")


def _staged(folder: Path) -> Path:
    return folder.with_name(folder.name + PARTIAL)


def log_of(folder: Path) -> Path:
    """The file that says how far a model is."""
    return folder.with_name(folder.name + ".log")


def lock_of(folder: Path) -> Path:
    """The file that the process which brings a model holds locked."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def _alone(folder: Path, say: Say) -> Iterator[None]:
    """One process at a time brings a model to `folder`."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = open(lock_of(folder), "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise ConfigError(
            f"cannot write {folder.parent} ({error.strerror}); run `python -m experiments model` where it can be"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"{folder} is being brought by another process; waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _require_room(where: Path, size: int) -> None:
    free = shutil.disk_usage(where).free
    if size > free:
        raise ConfigError(f"{where.resolve()} has {free / GIB:.2f} GiB free, {size / GIB:.2f} are needed; give --out")


@contextmanager
def _progress(folder: Path, total: int, done: Callable[[], int], say: Say) -> Iterator[None]:
    """Say every EVERY_S seconds how far the work is, and write it to FOLDER.log."""
    began, before = time.monotonic(), done()
    with open(log_of(folder), "a", encoding="utf-8") as log:

        def tick() -> None:
            now, seconds = done(), time.monotonic() - began
            rate = (now - before) / seconds
            left = f"about {span(max((total - now) / rate, 1))} left" if rate > 0 and now < total else "at work"
            line = f"{folder.name}: {now / GIB:.2f} of {total / GIB:.2f} GiB, {seconds:.0f} s, {left}"
            say(line)
            log.write(line + "\n")
            log.flush()

        with ticking(EVERY_S, tick):
            yield


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes(folder: Path) -> int:
    """Of all files in a folder that may not exist, and that others write into."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
