"""Whether a place that an option names can take files, tried before the work whose result belongs there."""

from __future__ import annotations

import tempfile
from pathlib import Path

from common.errors import ConfigError


def require_directory(out: Path, option: str) -> None:
    """Write once into `out`, or into the folder that it would be made in; leaves nothing. ConfigError, one line, otherwise."""
    _write_once(out, f"{option} {out}", "directory")


def require_file(out: Path, option: str) -> None:
    """The same for a file, whose folder is made where it is absent."""
    if out.is_dir():
        raise ConfigError(f"{option} {out}: Is a directory; give a file that can be written")
    _write_once(out.absolute().parent, f"{option} {out}", "file")


def _write_once(folder: Path, named: str, what: str) -> None:
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ConfigError(f"{named}: {error.strerror}; give a {what} that can be written") from None
