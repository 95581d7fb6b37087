"""The compose file as `docker compose config` resolves it: the reference that everything else is held against."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PROFILES = ("cpu", "one-gpu", "gpu", "report", "viewer", "status")
TOOLS = Path(sys.executable).parent


def tool(name: str) -> str:
    """A program that `make checks` installs beside the interpreter."""
    path = TOOLS / name
    assert path.is_file(), f"{name} is missing: run `make checks`"
    return str(path)


def compose_config(profiles=(), env=None, file=ROOT / "docker-compose.yml", env_file=ROOT / ".env.example"):
    """`docker compose config` as a mapping; needs no engine. Raises CalledProcessError with its message."""
    command = [tool("docker-compose"), "-f", str(file), "--project-directory", str(ROOT), "--env-file", str(env_file)]
    command += [part for profile in profiles for part in ("--profile", profile)]
    clean = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
    done = subprocess.run(
        [*command, "config", "--format", "json"], capture_output=True, text=True, check=True, env=clean | (env or {})
    )
    return json.loads(done.stdout)
