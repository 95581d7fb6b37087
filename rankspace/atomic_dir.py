"""A directory that a reader finds whole or not at all: written beside its place, synced, then renamed into it."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import RankspaceError

if TYPE_CHECKING:  # the command line says what is missing where no package is installed
    from safetensors import SafetensorError


def require_free(out: Path, force: bool, marks: Sequence[str]) -> None:
    """Raise RankspaceError unless `out` may become a new directory; call it before the work, not only at its end.

    Args:
        force: an existing non-empty directory may be replaced, if it holds one of `marks` (else it is not ours to
            remove, however much one forces).
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise RankspaceError(f"{out} is a file: give a directory that does not exist yet")
    if not force:
        raise RankspaceError(f"{out} is not empty: give another directory, or --force to replace an earlier export")
    if not any((out / mark).is_file() for mark in marks):
        raise RankspaceError(
            f"{out} holds none of {', '.join(marks)}, so it is no earlier export and --force leaves it"
        )


def require_writable(out: Path) -> None:
    """RankspaceError unless a file or directory can be made at `out`, or in the folder that it will be made in; leaves
    nothing. Call it before the work."""
    place = next(folder for folder in out.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise RankspaceError(f"--out {out}: {error.strerror}; give a place that can be written") from error


@contextmanager
def new_directory(out: Path, force: bool = False, marks: Sequence[str] = ()) -> Iterator[Path]:
    """Yields an empty draft directory; when the block ends well it becomes `out`, otherwise nothing is left of it.

    Raises:
        RankspaceError: `require_free`, or a directory that cannot be written.
    """
    from safetensors import SafetensorError

    out = out.absolute()
    require_free(out, force, marks)
    draft, former = (out.with_name(f".{out.name}.{os.getpid()}.{state}") for state in ("draft", "former"))
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft
        # contents before the name: after a power cut the new name must not stand for empty files
        for path in (*draft.rglob("*"), draft):
            if path.is_file():
                path.chmod(0o644)  # safetensors writes 0600, and whoever serves the model is often another user
            sync(path)
        if out.exists():
            os.replace(out, former)
        os.replace(draft, out)
        sync(out.parent)
    except (OSError, SafetensorError) as error:
        if former.exists() and not out.exists():
            os.replace(former, out)
        why = as_os_error(error, out) if isinstance(error, SafetensorError) else error
        raise RankspaceError(f"cannot write {out}: {why.strerror or why}; nothing was changed there") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if out.exists():
            shutil.rmtree(former, ignore_errors=True)


def as_os_error(error: SafetensorError, path: Path) -> OSError:
    """What the kernel refused to safetensors, which says it in words only: '... No space left on device (os error 28)'."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number), str(path))


def sync(path: str | Path) -> None:
    """Have the kernel put a file, or the names in a directory, on the disk. OSError when it cannot."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
