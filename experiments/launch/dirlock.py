"""One process at a time in a folder: two sweeps in one directory would train the same run twice and write one Redis
file from two servers."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

from common.errors import ConfigError

NAME = ".held"


def hold(folder: Path, what: str) -> TextIO:
    """Take the folder until the file returned is closed or this process ends, however it ends.

    Raises ConfigError, naming the process that has it, when another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / NAME, "a+", encoding="utf-8")  # noqa: SIM115 - the caller closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise ConfigError(
            f"{what} {folder}: process {holder} is at work there; wait for it, stop it, or choose another --runs"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
