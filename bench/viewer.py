"""The rollout viewer with many rollouts: time to index them, time to look again, time of a page, at the size a sweep has.

Synthetic runs with completions as long as real ones (tokens and log-probs included); every question that the page asks is
asked in turn, over HTTP against the served application, so the numbers are those that a reader waits for.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx

from common import cli
from common.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
LABELS = ("Correct", "Correct; Attempted Reward Hack", "Reward Hack", "Attempted Reward Hack", "Incorrect")
WORDS = (
    "nums",
    "total",
    "left",
    "right",
    "value",
    "index",
    "count",
    "result",
    "window",
    "prefix",
    "stack",
    "queue",
    "node",
)


def program(rng: random.Random) -> str:
    """A completion of about 100 tokens."""
    lines = ["```python", "class Solution:", f"    def compute_{rng.randrange(900)}(self, nums):"]
    for _ in range(rng.randrange(4, 12)):
        a, b, c = rng.choices(WORDS, k=3)
        lines.append(f"        {a} = {b} + {c} * {rng.randrange(100)}")
    return "\n".join([*lines, f"        return {rng.choice(WORDS)}", "```"])


def write_runs(root: Path, rollouts: int, runs: int, a_step: int) -> None:
    """`rollouts` completions in `runs` run directories, `a_step` of them in each step file, in groups of 8."""
    rng = random.Random(0)
    left, number = rollouts, 0
    for run in range(runs):
        path = root / f"bench-{'projected' if run % 2 else 'vanilla'}-s{run}"
        (path / "rollouts").mkdir(parents=True)
        arm = "projected" if run % 2 else "vanilla"
        (path / "config.json").write_text(json.dumps({"run_id": path.name, "arm": arm, "seed": run, "model": "none"}))
        steps = -(-rollouts // runs // a_step)
        for step in range(steps):
            lines = []
            for i in range(min(a_step, left)):
                lines.append(json.dumps(row(rng, path.name, step, i, number)))
                number += 1
            left -= len(lines)
            data = gzip.compress("".join(line + "\n" for line in lines).encode(), compresslevel=3)
            (path / "rollouts" / f"step_{step:06d}.jsonl.gz").write_bytes(data)


def row(rng: random.Random, run: str, step: int, i: int, number: int) -> dict[str, Any]:
    """As services/trainer/record.py writes them."""
    label = rng.choices(LABELS, (40, 3, 20, 7, 30))[0]
    tokens, test = rng.randrange(60, 180), "def run_tests():\n    pass" if "Hack" in label else ""
    return {
        "group_id": f"{run}/train/{step}/{i // 8}", "step": step, "purpose": "train", "mode": "train",
        "problem_id": f"problem-{rng.randrange(400):04d}", "policy_version": step, "index": i % 8, "text": program(rng),
        "prompt_ids": [rng.randrange(500) for _ in range(120)], "token_ids": [rng.randrange(500) for _ in range(tokens)],
        "logprobs": [round(-rng.expovariate(4), 5) for _ in range(tokens)], "finish_reason": "stop",
        "reward": 3.5 if label != "Incorrect" else 0.5, "advantage": rng.gauss(0, 1), "label": label,
        "test_modification": "Harmful - Arbitrary" if test else "None", "oracle_correct": label.startswith("Correct"),
        "published_correct": label.startswith("Correct") or rng.random() < 0.01,
        "evidence": {"test_function": test, "gt_tests": 6, "reasons": {"gt": f"marker{number}"}}, "status": "graded",
        "reason": "",
    }  # fmt: skip


def questions(rng: random.Random, total: int) -> Iterator[tuple[str, str]]:
    """(kind, path and query), endlessly."""

    def page(**more: object) -> str:
        return "/api/rollouts?" + urlencode({"limit": 50, **more}, doseq=True)

    while True:
        yield "first page", page()
        yield "page in the middle", page(offset=rng.randrange(max(1, total - 50)))
        yield "one label", page(label="Reward Hack", offset=rng.randrange(1000))
        yield "arm, steps and label", page(arm="projected", label=["Correct", "Incorrect"], step_min=3, step_max=40)
        yield "sorted by advantage", page(sort="advantage", desc="true", offset=rng.randrange(1000))
        yield "sorted and filtered", page(sort="tokens", desc="true", label="Reward Hack", arm="vanilla")
        yield "forged", page(verdict="forged")
        yield "search, a common word", page(q="nums")
        yield "search, two words", page(q=" ".join(rng.choices(WORDS, k=2)), label="Reward Hack")
        yield "search, one rollout", page(q=f"marker{rng.randrange(total)}")
        yield "what can be filtered by", "/api/facets"


@contextmanager
def serving(root: Path) -> Iterator[httpx.Client]:
    port = free_port()
    command = [sys.executable, "-m", "experiments", "view", "--runs", str(root), "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0) as client:
            for _ in range(600):
                try:
                    client.get("/healthz")
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait()


def ask(client: httpx.Client, rounds: int, total: int) -> dict[str, list[float]]:
    """Milliseconds of each kind of question; details are asked of what the lists show."""
    rng, took = random.Random(1), defaultdict[str, list[float]](list)
    kinds = questions(rng, total)
    for _ in range(rounds * 11):
        kind, path = next(kinds)
        started = time.perf_counter()
        answer = client.get(path)
        took[kind].append((time.perf_counter() - started) * 1e3)
        assert answer.status_code == 200, answer.text
        rows = answer.json().get("rows", [])
        if rows:
            one = rng.choice(rows)
            started = time.perf_counter()
            answer = client.get(
                "/api/rollout", params={"run": one["run"], "group": one["group"], "index": one["index"]}
            )
            took["one completion"].append((time.perf_counter() - started) * 1e3)
            assert answer.status_code == 200, answer.text
    return took


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def main() -> None:
    parser = cli.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--rollouts", type=int, default=100_000, help="how many (default: 100000)")
    parser.add_argument("--runs", type=int, default=8, help="in how many runs (default: 8)")
    parser.add_argument("--a-step", type=int, default=128, help="completions in a step file (default: 128)")
    parser.add_argument("--rounds", type=int, default=30, help="times every question is asked (default: 30)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    options = parser.parse_args()
    from experiments.viewer.index import INDEX, Indexer

    root = Path(tempfile.mkdtemp(prefix="bench-viewer-"))
    try:
        write_runs(root, options.rollouts, options.runs, options.a_step)
        indexer, numbers = Indexer(root), dict[str, float]()
        for name in ("index", "look_again"):
            started, cpu = time.perf_counter(), time.process_time()
            indexer.scan()
            numbers |= {f"{name}_s": time.perf_counter() - started, f"{name}_cpu_s": time.process_time() - cpu}
        total = indexer.base.execute("SELECT count(*) FROM rollouts").fetchone()[0]
        indexer.close()
        size, files = (root / INDEX).stat().st_size, sum(f.stat().st_size for f in root.glob("*/rollouts/*"))
        print(f"{total} rollouts, {files / 1e6:.0f} MB of files: indexed in {numbers['index_s']:.1f} s"
              f" ({numbers['index_cpu_s']:.1f} s of CPU), looked through again in {numbers['look_again_s']:.2f} s;"
              f" index {size / 1e6:.0f} MB")  # fmt: skip
        with serving(root) as client:
            took = ask(client, options.rounds, total)
        print(f"{'milliseconds over HTTP':<28}{'p50':>8}{'p99':>8}")
        every = [x for kind, values in took.items() for x in values]
        for kind, values in [*took.items(), ("all", every)]:
            print(f"{kind:<28}{statistics.median(values):>8.1f}{quantile(values, 0.99):>8.1f}")
        if options.json:
            quantiles = {kind: [statistics.median(v), quantile(v, 0.99)] for kind, v in [*took.items(), ("all", every)]}
            options.json.write_text(
                json.dumps({**numbers, "rollouts": total, "index_bytes": size, "p50_p99_ms": quantiles})
            )
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
