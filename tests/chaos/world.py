"""The real services on the bundled organism, with a supervisor that restarts what dies, for faults to be injected into.

    driver ── Stack (Redis, ref_server, two graders; all through a proxy) ── one trainer at a time

The driver is a subreaper: whatever a killed service leaves behind becomes its child, and is found as an orphan.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from common import acl, failpoints, keys
from common.access import Client, connect
from common.settings import TrainerSettings, build, dump
from experiments.design import presets
from experiments.launch.direction import ensure_direction
from experiments.launch.stack import Stack, environment
from tests.chaos.proxy import Proxy

PR_SET_CHILD_SUBREAPER = 36
STEPS, GROUPS, SIZE = 10, 4, 4
CLAIM_IDLE_S = 3.0
GRADERS = 2
# One group a batch: what a group's tokens are then depends on its own seed and the weights only, not on its neighbours.
SERVER = {"max_batch_groups": 1, "claim_idle_s": CLAIM_IDLE_S, "max_deliveries": 20}
# As the presets for GPUs have it, and gradients that no restart repeats (other_bits.py).
GPU_RUN = {"checkpoint_every": 5, "max_staleness": 1, "dtype": "bfloat16", "probe_bound": 0.25}
GPU_SERVER = {"dtype": "bfloat16"}
RUN = {"steps": STEPS, "groups_per_step": GROUPS, "group_size": SIZE, "eval_problems": 1, "eval_samples": 1, "eval_every": 0,
       "checkpoint_every": 1, "keep_checkpoints": 2, "group_timeout_s": 240.0}  # fmt: skip


class ChaosStack(Stack):
    """A Stack whose services reach Redis through a proxy, with a superuser for the tests and per-service environments."""

    proxy: Proxy
    superuser: str
    extra: Mapping[str, Mapping[str, str]]

    def _start_redis(self, port: int) -> None:
        original, self.superuser = acl.users_file, secrets.token_urlsafe(16)
        line = f"user chaos on #{acl.digest(self.superuser)} ~* &* +@all\n"
        acl.users_file = lambda *a, **k: original(*a, **k) + line
        try:
            super()._start_redis(port)
        finally:
            acl.users_file = original
        self.proxy = Proxy(port)
        self.direct_url, self.redis_url = self.redis_url, f"redis://127.0.0.1:{self.proxy.port}/0"

    def _spawn(self, name: str, command: list[str], gpu: str | None = None) -> None:
        kept = dict(os.environ)
        os.environ.update(self.extra.get(name, {}))
        try:
            super()._spawn(name, command, gpu)
        finally:
            os.environ.clear()
            os.environ.update(kept)

    def all_powerful(self) -> Client:
        """Straight to Redis, with every right."""
        return connect(self.direct_url, 2.0, "chaos", self.superuser)


class World:
    """Services, the trainer of the round, and what the faults need to know about both."""

    def __init__(self, root: Path, extra: Mapping[str, Mapping[str, str]] | None = None, like_gpu: bool = False):
        self.like_gpu = like_gpu
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.root = Path(root)
        ChaosStack.extra = extra or {}
        server = {**presets.get("smoke").server, **SERVER, **(GPU_SERVER if like_gpu else {})}
        self.stack = ChaosStack.start(
            self.root / "stack", presets.ORGANISM_MODEL, server, GRADERS, "best_effort",
            sandbox={"claim_idle_s": CLAIM_IDLE_S, "max_deliveries": 20},
        )  # fmt: skip
        self.redis = self.stack.all_powerful()
        self.trainer: subprocess.Popen | None = None
        self.settings: TrainerSettings | None = None
        self.restarts: list[str] = []
        self.hands_off: set[str] = set()
        self.allowed: set[int] = set()

    def close(self) -> None:
        if self.trainer is not None and self.trainer.poll() is None:
            self.trainer.kill()
            self.trainer.wait()
        self.stack.stop()
        self.stack.proxy.close()

    # -- the run of this round ------------------------------------------------------------------------------------

    def begin(self, name: str, run_dir: Path | None = None) -> None:
        values = presets.resolve("smoke", "projected", 0, {}, self.root) | RUN | (GPU_RUN if self.like_gpu else {})
        values |= {"run_id": name, "run_dir": str(run_dir or self.root / name), "svd_cache": str(self.root / "svd")}
        self.settings = build(TrainerSettings, values | self.stack.access("trainer"))
        ensure_direction("smoke", "projected", 0, self.settings)
        self.restarts, self.hands_off = [], set()
        self.start_trainer()

    def start_trainer(self, fault: str = "") -> None:
        self.trainer = self.spawn_trainer(fault)

    def spawn_trainer(self, fault: str = "") -> subprocess.Popen:
        config = self.root / f"{self.settings.run_id}.json"
        config.write_text(dump(self.settings))
        module = "tests.chaos.other_bits" if self.like_gpu else "services.trainer"
        command = [sys.executable, "-m", module, "--config", str(config)]
        with open(self.root / f"{self.settings.run_id}.log", "ab") as out:
            return subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=environment() | {failpoints.VARIABLE: fault}
            )

    def step(self) -> int:
        """Steps whose rows are written."""
        path = self.settings.run_dir / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def finished(self) -> bool:
        return self.trainer.poll() == 0

    def tend(self) -> None:
        """What a supervisor does: start again whatever has died, unless a fault has it in hand."""
        for process in list(self.stack.processes):
            if process.popen.poll() is not None and process.name not in self.hands_off:
                self.restarts.append(process.name)
                self.stack.restart(process.name)
        code = self.trainer.poll()
        if code not in (None, 0) and "trainer" not in self.hands_off:
            self.restarts.append(f"trainer ({code})")
            self.start_trainer()

    def wait(self, done, limit: float, what: str) -> float:
        """Tend until done(); seconds it took. AssertionError with the logs' ends after `limit`."""
        started = time.monotonic()
        while not done():
            self.tend()
            assert time.monotonic() - started < limit, f"{what} not within {limit:.0f} s\n{self.logs()}"
            time.sleep(0.05)
        return time.monotonic() - started

    def pause_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.tend()
            time.sleep(0.05)

    def logs(self) -> str:
        paths = [self.root / f"{self.settings.run_id}.log", *sorted(self.stack.root.glob("*.log"))]
        ends = {p.name: p.read_text(errors="replace").splitlines()[-8:] for p in paths if p.exists()}
        return "\n".join("\n".join([f"== {name}", *lines]) for name, lines in ends.items())

    # -- what the services are doing, seen from outside -------------------------------------------------------------

    def in_work(self, stream: str, group: str) -> dict[str, int]:
        """Consumer -> messages in its hands."""
        if not self.redis.exists(stream):
            return {}
        groups = {g["name"].decode(): g for g in self.redis.xinfo_groups(stream)}
        if group not in groups or not groups[group]["pending"]:
            return {}
        return {c["name"].decode(): c["pending"] for c in self.redis.xinfo_consumers(stream, group) if c["pending"]}

    def generating(self) -> bool:
        return bool(self.in_work(keys.REQUESTS, keys.GENERATORS))

    def grading(self) -> list[str]:
        """Names of the graders with a group in hand."""
        return sorted(self.in_work(keys.ROLLOUTS, keys.GRADERS))

    def pid(self, name: str) -> int:
        return self.trainer.pid if name == "trainer" else self.stack.process(name).popen.pid

    def send(self, name: str, number: signal.Signals) -> None:
        os.kill(self.pid(name), number)

    def orphans(self) -> list[str]:
        """Living processes that a dead service left to us."""
        known = {p.popen.pid for p in self.stack.processes} | {self.trainer.pid} | self.allowed
        found = []
        for child in psutil.Process().children():
            try:
                if child.pid not in known and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{child.pid} {' '.join(child.cmdline())[:120]}")
            except psutil.NoSuchProcess:
                continue
        return found

    def delta(self, run_dir: Path) -> bytes:
        newest = max((run_dir / "checkpoints").glob("step_??????"))
        return (newest / "delta_S.f32").read_bytes()

    def outcomes(self) -> dict[str, int]:
        newest = max((self.settings.run_dir / "checkpoints").glob("step_??????"))
        return json.loads((newest / "state.json").read_text())["outcomes"]
