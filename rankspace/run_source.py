"""A run's files by name, out of its directory or out of the one file that it is kept as. No torch.

runs/<run_id>/metrics.jsonl    a run directory
kept/<run_id>.tar.xz           the same folder without rollouts and checkpoints, as `python -m experiments keep` writes it
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import RankspaceError

KEPT = ".tar.xz"
LARGEST = 1 << 28
"""Bytes that a kept run may unpack to: far above any, far below what a machine has."""


@dataclass(frozen=True)
class RunSource:
    """Where one run is read from. files: what a kept file holds, by name; None: `path` is a directory."""

    path: Path
    files: Mapping[str, bytes] | None = None

    def read(self, name: str) -> bytes | None:
        """The bytes of one file; None where the run has none of that name. Raises OSError."""
        if self.files is not None:
            return self.files.get(name)
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None


def is_kept(path: Path) -> bool:
    """Whether a path is, by its name, a kept run."""
    return path.name.endswith(KEPT)


def name_of(path: Path) -> str:
    """The name of the run's folder, also of a kept one."""
    return path.name.removesuffix(KEPT)


def open_source(path: Path) -> RunSource:
    """A run directory or a kept run. RankspaceError, one line, when a kept one cannot be read or is damaged."""
    if not is_kept(path):
        return RunSource(path)
    try:
        folders = _folders(_unpacked(path.read_bytes()))
    except OSError as error:
        raise RankspaceError(f"{path}: {error.strerror}; give a run directory or a kept run") from None
    except (EOFError, tarfile.TarError) as error:
        raise RankspaceError(
            f"{path}: damaged ({error}); restore the file, or delete it and keep the run anew"
        ) from None
    if set(folders) != {name_of(path)}:
        what = ", ".join(folders) or "nothing"
        raise RankspaceError(f"{path}: holds {what}; a kept run has the name of what it holds")
    return RunSource(path, folders[name_of(path)])


def _unpacked(packed: bytes) -> bytes:
    """Whole, so that a file that was cut short is an error and not fewer rows."""
    import lzma  # here, because a Python may be built without it

    decoder = lzma.LZMADecompressor(memlimit=LARGEST)
    try:
        data = decoder.decompress(packed, max_length=LARGEST)
    except lzma.LZMAError as error:
        raise EOFError(str(error)) from None
    if not decoder.eof or decoder.unused_data:
        raise EOFError("it does not end where it says")
    return data


def _folders(data: bytes) -> dict[str, dict[str, bytes]]:
    """The files of an archive, by folder and name."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                place = PurePosixPath(member.name)
                found.setdefault(str(place.parent), {})[place.name] = file.read()
    return found
