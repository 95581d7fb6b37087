"""What a command writes into: the resolution of its figures, and whether --out can take its files, tried before the work."""

from __future__ import annotations

import tempfile
from pathlib import Path

from common.errors import ConfigError

DPI = 200  # of every figure; figures/style.py sets it


def check_out(out: Path) -> None:
    """Write once into it, or into the folder that it would be made in; leaves nothing. ConfigError, one line, otherwise."""
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}; give a directory that can be written") from None
