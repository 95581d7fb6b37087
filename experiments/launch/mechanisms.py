"""What the preset mechanisms needs: the organism that knows four loopholes, made from the bundled one on first use."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from common.errors import ConfigError
from experiments.design.presets import MECHANISMS_MODEL
from tasks.organism import make


def prepare() -> None:
    """The model where the preset looks for it; about two minutes of one core when it is not there."""
    folder = Path(MECHANISMS_MODEL)
    if _made(folder):
        return
    print(
        f"making {folder}: the organism goes on from the bundled one on prompts of all four loopholes ...", flush=True
    )
    command = [sys.executable, "-m", "tasks.organism.make", "--mechanisms", "--out", str(folder)]
    if subprocess.run(command).returncode:  # a process of its own: its arithmetic is pinned before torch loads
        raise ConfigError(f"{folder} could not be made: see the message above")


def _made(folder: Path) -> bool:
    """Whether a whole model of this recipe is there."""
    if not (folder / make.MANIFEST).is_file():
        return False
    manifest = make.read_manifest(folder)
    same = manifest["recipe"] == json.loads(json.dumps(asdict(make.Continued())))
    return same and not make.differences(manifest["sha256"], make.hashes(folder))
