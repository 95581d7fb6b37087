"""What the preset mechanisms needs: the organism that knows four loopholes, made from its recipe on first use."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from common.errors import ConfigError
from experiments.design.presets import MECHANISMS_MODEL
from tasks.organism.make import MANIFEST

MAKE = "tasks.organism.make"


def prepare(models: Collection[str]) -> None:
    """The preset's model where it looks for it, if it is among `models`."""
    if MECHANISMS_MODEL in models:
        ensure(Path(MECHANISMS_MODEL))


def ensure(folder: Path, say: Callable[[str], None] = print) -> Path:
    """`folder` with the organism in it. Raises ConfigError when it cannot be made."""
    if (folder / MANIFEST).is_file():
        return folder
    say(f"making {folder}, once: pretraining on one core, 8 to 20 minutes ...")
    command = [sys.executable, "-m", MAKE, "--mechanisms", "--out", str(folder)]
    if code := subprocess.run(command).returncode:  # a process of its own: it pins the arithmetic before torch loads
        raise ConfigError(
            f"model {folder} could not be made (`python -m {MAKE} --mechanisms` ended with {code}, see above)"
        )
    return folder
