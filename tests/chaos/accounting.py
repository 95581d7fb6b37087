"""What must hold after a run, whatever was done to it. Each function raises AssertionError with what does not add up."""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter

from common import keys
from services.trainer.requests import train_requests
from tasks.dataset import load_problems
from tests.chaos.world import World

ACCOUNTED = ("trained", "zero_variance", "dropped", "stale")


def everything(world: World, calm: bytes | None) -> list[str]:
    """All checks; returns remarks (what is allowed but worth saying)."""
    finished(world)
    no_refusal(world)
    groups(world)
    nothing_left(world)
    return same_as(world, calm)


def finished(world: World) -> None:
    s = world.settings
    assert json.loads((s.run_dir / "status.json").read_text())["state"] == "finished", world.logs()
    for name in ("metrics.jsonl", "modules.jsonl"):
        rows = [json.loads(line)["step"] for line in (s.run_dir / name).read_text().splitlines()]
        allowed = list(range(s.steps))
        assert rows == allowed if name == "metrics.jsonl" else rows == sorted(set(rows)), f"{name}: steps {rows}"
    rows = [json.loads(line) for line in (s.run_dir / "eval.jsonl").read_text().splitlines()]
    counts = Counter((r["step"], r["mode"]) for r in rows)
    assert set(counts.values()) == {1}, f"evaluations {counts}"


def no_refusal(world: World) -> None:
    """No start of the trainer has taken a generator's proof of a former push for a fault."""
    log = (world.root / f"{world.settings.run_id}.log").read_text(errors="replace")
    refused = [line for line in log.splitlines() if "error:" in line and "generator" in line]
    assert not refused, "\n".join(refused)


def groups(world: World) -> None:
    """Zero lost, zero doubled: every group that was asked for was trained exactly once, or dropped and counted."""
    s, outcomes = world.settings, world.outcomes()
    problems = load_problems(s.train_problems)
    asked = {r.group_id for step in range(s.steps) for r in train_requests(s, problems, step)}
    seen: Counter[str] = Counter()
    for path in (s.run_dir / "rollouts").glob("step_*.jsonl.gz"):
        with gzip.open(path, "rt", encoding="utf-8", errors="surrogatepass") as file:
            seen.update(row["group_id"] for row in map(json.loads, file) if row["mode"] == "train")
    assert set(seen) <= asked, f"groups nobody asked for: {set(seen) - asked}"
    assert all(n == s.group_size for n in seen.values()), f"doubled or torn: {seen}"
    missing = len(asked) - len(seen)
    assert missing == outcomes.get("dropped", 0) + outcomes.get("stale", 0), (
        f"{missing} not trained, outcomes {outcomes}"
    )
    assert sum(outcomes.get(name, 0) for name in ACCOUNTED) == len(asked), f"{outcomes} for {len(asked)} groups"


def nothing_left(world: World, limit: float = 25.0) -> None:
    """No work in the streams, no lock, no draft, no orphan. Late duplicates may take a moment to drain."""
    client, s = world.redis, world.settings
    streams = (keys.REQUESTS, keys.ROLLOUTS)
    world.wait(lambda: not any(client.xlen(stream) for stream in streams), limit, "the streams' drain")
    assert not client.exists(keys.trainer_lock(s.run_id)), "a stale lock"
    log = (world.stack.root / "redis.log").read_text(errors="replace")
    assert "NOPERM" not in log, "Redis dropped transactions when it replayed its append-only file"
    drafts = [str(p) for p in s.run_dir.rglob("*") if "draft" in p.name]
    assert not drafts, f"half-written: {drafts}"
    left = [fields for _, fields in client.xrange(keys.graded(s.run_id))]
    late = world.outcomes()
    assert len(left) <= 4 * s.groups_per_step, f"{len(left)} messages left in graded, outcomes {late}"
    deadline = time.monotonic() + 5
    while (found := world.orphans()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not found, f"orphans: {found}"


def same_as(world: World, calm: bytes | None) -> list[str]:
    """delta_S bit for bit that of the uninterrupted run; with a dropped group it cannot be, and that is said."""
    if calm is None:
        return []
    dropped = {k: v for k, v in world.outcomes().items() if k in ("dropped", "stale")}
    if dropped:
        return [f"delta_S not compared: {dropped}"]
    assert world.delta(world.settings.run_dir) == calm, f"delta_S differs from the uninterrupted run's\n{world.logs()}"
    return []
