"""python -m tests.golden [--pin]: five steps on the organism, and where their numbers differ from the pinned ones.

A difference means that a number no longer means what it meant: in the code, in a library, or in the model. If that is
what you want, `python -m tests.golden --pin` writes numbers.json and completions.json.gz anew; commit them together with
a dated entry in LOG.md that says which numbers moved, and why.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NUMBERS, COMPLETIONS = HERE / "numbers.json", HERE / "completions.json.gz"
RELATIVE, ABSOLUTE = 2e-3, 2e-6  # a number may differ by this much from machine to machine
SAMPLED = 0.9  # share of completions that must be sampled token for token as recorded
GAP = 1e-3  # nats, by which the log-prob of a token that was sampled as recorded may differ
CLOCK = {"seconds", "push_s", "probe_gap"}  # the first two are times, the third is rounding alone and has its own bound


def measure(redis_url: str, root: Path, recorded: Path | None = COMPLETIONS) -> dict[str, Any]:
    """The numbers of a run in a process of its own, trained on the recorded completions."""
    command = [sys.executable, "-m", "tests.golden.drive", redis_url, str(root), str(recorded or "")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the run failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads((root / "numbers.json").read_text())
    return found


def differences(found: Any, pinned: Any, where: str = "") -> Iterator[str]:
    """One line for each number, word or place that differs; floats within the tolerances do not."""
    if isinstance(found, dict) and isinstance(pinned, dict):
        for name in sorted(
            pinned.keys() - CLOCK, key=str
        ):  # a quantity that is new changes no other; --pin takes it in
            if name in found:
                yield from differences(found[name], pinned[name], f"{where}.{name}")
            else:
                yield f"{where}.{name}: is missing"
    elif isinstance(found, list) and isinstance(pinned, list) and len(found) == len(pinned):
        for i, (a, b) in enumerate(zip(found, pinned, strict=True)):
            yield from differences(a, b, f"{where}[{i}]")
    elif isinstance(found, float) and isinstance(pinned, float):
        if not abs(found - pinned) <= ABSOLUTE + RELATIVE * abs(pinned):
            yield f"{where}: {found!r}, pinned {pinned!r}"
    elif found != pinned or type(found) is not type(pinned):
        yield f"{where}: {found!r}, pinned {pinned!r}"


def compare(found: dict[str, Any]) -> list[str]:
    """What differs from the pinned numbers, sampling first."""
    pinned = json.loads(NUMBERS.read_text())
    sampling, lines = found["sampling"], []
    if sampling["requests"] != pinned["sampling"]["requests"]:
        lines.append("the requests (problems, order, seeds) are not the recorded ones")
    if sampling["same"] < SAMPLED:
        lines.append(f"only {sampling['same']:.0%} of the completions are sampled as recorded")
    if sampling["gap"] > GAP:
        lines.append(f"a sampled token's log-prob differs by {sampling['gap']:.2g} nats from the recorded one")
    rest = [{k: v for k, v in numbers.items() if k != "sampling"} for numbers in (found, pinned)]
    return lines + list(differences(*rest))


def _text(numbers: dict[str, Any]) -> str:
    """As JSON; a list of numbers or words alone is one line."""
    lists = re.compile(r"\[\s+([^][{}]+?)\s+\]")
    return lists.sub(lambda m: "[" + re.sub(r",\s+", ", ", m[1]) + "]", json.dumps(numbers, indent=1)) + "\n"


@contextmanager
def _redis() -> Iterator[str]:
    from common.ports import free_port
    from experiments.launch.stack import redis_server

    port = free_port()
    command = [redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        time.sleep(1.0)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__.split("\n")[0])
    parser.add_argument("--pin", action="store_true", help="pin what is found now; needs an entry in LOG.md")
    pin = parser.parse_args().pin
    with _redis() as url, tempfile.TemporaryDirectory() as folder:
        found = measure(url, Path(folder), None if pin else COMPLETIONS)
        if pin:
            shutil.copy(Path(folder) / COMPLETIONS.name, COMPLETIONS)
    if pin:
        NUMBERS.write_text(_text(found))
        print(f"pinned {NUMBERS.name} and {COMPLETIONS.name}: say in LOG.md which numbers moved, and why")
        return 0
    lines = compare(found)
    print("\n".join(lines) or "every number is as pinned")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
