"""python -m deploy.audit [--strict]: known vulnerabilities of the locked packages, by pip-audit.

pip-audit runs in an environment of its own and asks a vulnerability service about each locked version. Where that
service cannot be reached this says so and ends well: a machine without the network is no reason to stop a build.
--strict makes it one. Exit codes: 0 nothing known (or not reachable), 1 something is known, 2 not reachable and strict.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import cli

ROOT = Path(__file__).resolve().parent.parent
PIP_AUDIT = "pip-audit==2.10.0"
LOCKS = ("requirements/cpu.lock", "requirements/cuda.lock", "requirements/checks.lock")
CANARY = "pyyaml==5.3"  # CVE-2020-1747: a service that finds nothing here would find nothing anywhere
LIMIT_S = 600


def audit(lock: str, tool: list[str]) -> tuple[str, str]:
    """('clean' | 'vulnerable' | 'unreachable', which or why). Nothing is resolved or installed: the lock as it is."""
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", "15", "--format", "json"]
    try:
        done = subprocess.run([*tool, "-r", lock, *options], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
        found = json.loads(done.stdout)["dependencies"]
    except (FileNotFoundError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
        return "unreachable", f"no answer from {PIP_AUDIT} ({type(error).__name__})"
    known = [f"{d['name']} {d['version']}: {v['id']}" for d in found for v in d.get("vulns", ())]
    if known:
        return "vulnerable", "; ".join(known)
    skipped = sum("skip_reason" in d for d in found)
    if skipped:
        return "unreachable", f"the service does not know {skipped} of {len(found)} packages"
    return "clean", f"{len(found)} packages"


def main(argv: list[str] | None = None, tool: list[str] | None = None) -> int:
    p = cli.Parser(prog="python -m deploy.audit", description=__doc__.splitlines()[0])
    p.add_argument("--strict", action="store_true", help="fail when the vulnerability service cannot be reached")
    args = p.parse_args(argv)
    tool = tool or [str(Path(sys.executable).with_name("uv")), "tool", "run", PIP_AUDIT]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(CANARY + "\n")
        file.flush()
        if audit(file.name, tool)[0] != "vulnerable":
            print(f"not checked: no vulnerability service within reach that knows what is wrong with {CANARY}")
            return 2 if args.strict else 0
    worst = 0
    for lock in LOCKS:
        state, said = audit(lock, tool)
        print(f"{lock}: {'not checked' if state == 'unreachable' else state}: {said}")
        worst = max(worst, {"clean": 0, "vulnerable": 1, "unreachable": 2 if args.strict else 0}[state])
    return worst


if __name__ == "__main__":
    sys.exit(main())
