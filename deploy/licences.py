"""python -m deploy.licences: docs/licences.md, the licence of every locked package, from the packages' own metadata, and
of the files of others that lie in this repository.

A package of a lock that is not installed here (the CUDA build's) is listed without one. `make docs` writes the file; a
test compares its packages with the locks.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {"cpu": "requirements/cpu.lock", "cuda": "requirements/cuda.lock", "checks": "requirements/checks.lock"}
TORCH = ("torch",)  # installed by deploy/setup.sh beside the locks
VENDORED = "experiments/viewer/static/vendor"
NOT_HERE = "not installed on this machine"
HEAD = """# Licences of what is installed

Made by `python -m deploy.licences` from each package's own metadata. *cpu* and *cuda* are the two ways to install the
system, *checks* is what only the tests need. This project links to these packages and copies nothing out of them; the few
files of others that lie in this repository are at the end.

"""


def normal(name: str) -> str:
    """The name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(text: str) -> dict[str, str]:
    """Package -> version of one lock."""
    return {normal(n): v for n, v in re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", text, re.MULTILINE)}


def licence(name: str) -> str:
    """As the package states it: the SPDX expression, else the classifiers, else the first line of its licence field."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return NOT_HERE
    if "License-Expression" in about:
        return about["License-Expression"]
    classified = [c.rpartition(" :: ")[2] for c in (about.get_all("Classifier") or []) if c.startswith("License ::")]
    if named := sorted({c for c in classified if c != "OSI Approved"}):
        return ", ".join(named)
    text = about["License"].strip() if "License" in about else ""
    return text.splitlines()[0][:80] if text else "not stated"


def vendored() -> list[tuple[str, ...]]:
    """(file, package, version, licence, sha256) of each file of others, as VENDORED.md beside them says."""
    text = (ROOT / VENDORED / "VENDORED.md").read_text()
    return [
        tuple(row)
        for row in re.findall(r"^\| (\S+) \| (\S+) \| (\S+) \| ([^|]+) \| ([0-9a-f]{64}) \|$", text, re.MULTILINE)
    ]


def copied() -> str:
    """The section about them."""
    rows = [
        f"| `{VENDORED}/{file}` | {package} | {version} | {said} |" for file, package, version, said, _ in vendored()
    ]
    head = ["## Files of others in this repository", "", "| file | package | version | licence |", "|---|---|---|---|"]
    return "\n".join([*head, *rows])


def table() -> str:
    """The page."""
    versions: dict[str, dict[str, str]] = {}
    for kind, path in LOCKS.items():
        for name, version in locked((ROOT / path).read_text()).items():
            versions.setdefault(name, {})[kind] = version
    for name in TORCH:
        versions.setdefault(name, {}).setdefault("cpu", metadata.version(name).partition("+")[0])
    rows = [(name, kinds, licence(name)) for name, kinds in sorted(versions.items())]
    lines = ["| package | version | in | licence |", "|---|---|---|---|"]
    lines += [f"| {name} | {', '.join(sorted(set(k.values())))} | {', '.join(k)} | {said} |" for name, k, said in rows]
    counts = Counter(said for *_, said in rows)
    summary = [f"- {said}: {number}" for said, number in counts.most_common()]
    return HEAD + "\n".join(lines) + "\n\n## Summary\n\n" + "\n".join(summary) + "\n\n" + copied() + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
