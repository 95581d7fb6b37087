"""The faults, one function each. A fault gets the World and a seeded random generator and returns what it did.

Whoever is killed by a fault is started again by the world's supervisor, unless the fault says otherwise.
`cost` is a rough number of seconds, by which the mixture is filled up.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from common import failpoints, keys
from common.queue import FIELD
from tests.chaos.world import CLAIM_IDLE_S, World

FAULTS: dict[str, Fault] = {}
TRAINER_PLACES = ("collected", "optimised", "tensor_stored", "pushed", "checkpoint_written", "checkpoint_done")


class Missed(Exception):
    """The run was over before the fault could strike: it does not count, and is tried again in the next run."""


@dataclass(frozen=True)
class Fault:
    name: str
    inject: Callable[[World, random.Random], str]
    cost: float
    needs: str = ""


def fault(cost: float, needs: str = ""):
    def register(function):
        FAULTS[function.__name__] = Fault(function.__name__, function, cost, needs)
        return function

    return register


# ---- kill -9 ----------------------------------------------------------------------------------------------------


@fault(20)
def kill_trainer(w: World, rng: random.Random) -> str:
    """At any moment, also while it starts."""
    w.pause_for(rng.uniform(0, 2))
    w.send("trainer", signal.SIGKILL)
    return f"after step {w.step()}"


def _kill_trainer_at(place: str):
    def inject(w: World, rng: random.Random) -> str:
        """Restarts the trainer armed, so that it dies between two things that must not come apart."""
        w.hands_off.add("trainer")
        w.send("trainer", signal.SIGKILL)
        w.trainer.wait()
        times = rng.randint(1, 2)
        w.start_trainer(f"{place}:{times}")
        w.wait(lambda: w.trainer.poll() is not None, 240, f"death at {place}")
        w.hands_off.discard("trainer")
        if w.trainer.returncode == 0:
            raise Missed
        assert w.trainer.returncode == -signal.SIGKILL, f"the trainer ended with {w.trainer.returncode}\n{w.logs()}"
        return f"the {times}. time"

    inject.__name__ = f"kill_trainer_{place}"
    return inject


for _place in TRAINER_PLACES:
    fault(35)(_kill_trainer_at(_place))


@fault(60)
def kill_generator_at_work(w: World, rng: random.Random) -> str:
    _until(w, w.generating, 20)
    w.send("ref_server", signal.SIGKILL)
    return "with requests in hand" if w.generating() else "idle"


@fault(60)
def kill_generator_before_it_puts(w: World, rng: random.Random) -> str:
    """Sampled, sealed and not put; or put and not acknowledged, so that the group comes twice."""
    place, times = rng.choice(["sampled", "rollouts_put"]), rng.randint(1, 3)
    w.hands_off.add("ref_server")
    w.send("ref_server", signal.SIGKILL)
    w.stack.extra = {**w.stack.extra, "ref_server": {failpoints.VARIABLE: f"{place}:{times}"}}
    w.stack.restart("ref_server")
    w.stack.extra = {**w.stack.extra, "ref_server": {}}
    w.hands_off.discard("ref_server")
    return f"{place}, the {times}. time"


def _grader(w: World) -> tuple[str, bool]:
    """The process of a grader, and whether it is at work: waits for one that is, for 20 seconds."""
    _until(w, w.grading, 20)
    busy = w.grading()
    return (busy[0] if busy else "grader-0").replace("grader", "sandbox"), bool(busy)


@fault(5)
def kill_grader_at_work(w: World, rng: random.Random) -> str:
    name, busy = _grader(w)
    w.send(name, signal.SIGKILL)
    return name if busy else f"{name}, idle"


@fault(6)
def kill_grader_before_it_acknowledges(w: World, rng: random.Random) -> str:
    place, name = rng.choice(["graded", "grades_put"]), f"sandbox-{rng.randint(0, 1)}"
    kept = dict(w.stack.extra.get(name, {}))
    w.send(name, signal.SIGKILL)
    w.stack.process(name).popen.wait()
    w.hands_off.add(name)
    w.stack.extra = {**w.stack.extra, name: kept | {failpoints.VARIABLE: f"{place}:1"}}
    w.stack.restart(name)
    w.stack.extra = {**w.stack.extra, name: kept}
    w.hands_off.discard(name)
    return f"{name}, {place}"


@fault(6)
def kill_all_graders(w: World, rng: random.Random) -> str:
    for name in ("sandbox-0", "sandbox-1"):
        w.send(name, signal.SIGKILL)
    return ""


@fault(5)
def kill_fork_servers(w: World, rng: random.Random) -> str:
    """The jails' servers alone, as the out-of-memory killer would: their grader must not notice for longer than a job."""
    name = f"sandbox-{rng.randint(0, 1)}"
    _until(w, w.grading, 20)
    servers = [inner for outer in psutil.Process(w.pid(name)).children() for inner in outer.children() or [outer]]
    for server in servers:
        with contextlib.suppress(psutil.NoSuchProcess):
            server.kill()
    return f"{len(servers)} of {name}"


@fault(6)
def kill_redis(w: World, rng: random.Random) -> str:
    """Restarted from its append-only file after a while."""
    away = rng.uniform(0.2, 3)
    w.hands_off.add("redis")
    w.send("redis", signal.SIGKILL)
    w.stack.process("redis").popen.wait()
    w.pause_for(away)
    w.hands_off.discard("redis")
    w.tend()
    return f"away for {away:.1f} s"


@fault(8)
def redis_loses_its_last_second(w: World, rng: random.Random) -> str:
    """As a power cut with appendfsync everysec would: the file's last entries are gone, the last one torn."""
    w.hands_off.add("redis")
    w.send("redis", signal.SIGKILL)
    w.stack.process("redis").popen.wait()
    files = [p for p in (w.stack.root / "redis" / "appendonlydir").glob("*.incr.aof") if p.stat().st_size]
    newest = max(files, key=lambda p: p.stat().st_mtime)
    lost = min(newest.stat().st_size // 2, rng.randint(1, 200_000))
    os.truncate(newest, newest.stat().st_size - lost)
    w.hands_off.discard("redis")
    w.tend()
    return f"{lost} bytes lost"


# ---- stopped for longer than a time-out ---------------------------------------------------------------------------


def _stop(w: World, name: str, seconds: float) -> str:
    pid = w.pid(name)
    os.kill(pid, signal.SIGSTOP)
    try:
        w.pause_for(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)
    return f"{name} for {seconds:.1f} s"


@fault(7)
def stop_grader_past_its_claim(w: World, rng: random.Random) -> str:
    """The other one takes its group over; both answer."""
    name, _ = _grader(w)
    return _stop(w, name, CLAIM_IDLE_S + rng.uniform(1, 2))


@fault(7)
def stop_generator_past_its_claim(w: World, rng: random.Random) -> str:
    _until(w, w.generating, 20)
    return _stop(w, "ref_server", CLAIM_IDLE_S + rng.uniform(1, 2))


@fault(6)
def stop_redis(w: World, rng: random.Random) -> str:
    return _stop(w, "redis", rng.uniform(2, 5))


@fault(20)
def stop_trainer_past_its_lock(w: World, rng: random.Random) -> str:
    """Longer than lock and heartbeat live; nobody took over, so it goes on."""
    return _stop(w, "trainer", 16.5)


@fault(45)
def replace_a_stopped_trainer(w: World, rng: random.Random) -> str:
    """A second one takes the expired lock over; the first wakes up and must go without pushing or saving anything."""
    first = w.trainer
    w.hands_off.add("trainer")
    os.kill(first.pid, signal.SIGSTOP)
    w.allowed.add(first.pid)
    time.sleep(16.5)
    w.start_trainer()
    second = w.trainer
    w.wait(lambda: w.redis.get(keys.trainer_lock(w.settings.run_id)), 120, "the second trainer's lock")
    os.kill(first.pid, signal.SIGCONT)
    code = first.wait(120)
    w.allowed.discard(first.pid)
    w.hands_off.discard("trainer")
    assert code in (0, 2), f"the replaced trainer ended with {code}\n{w.logs()}"
    assert second.poll() in (None, 0), f"the second trainer ended with {second.returncode}\n{w.logs()}"
    return f"the first one left with code {code}"


@fault(12)
def two_trainers(w: World, rng: random.Random) -> str:
    """Started by mistake beside the first: refused, whatever the first is doing."""
    w.wait(lambda: w.finished() or w.redis.get(keys.trainer_lock(w.settings.run_id)), 120, "the first trainer's lock")
    if w.finished():
        raise Missed
    second = w.spawn_trainer()
    code = second.wait(180)
    assert code == 2 or w.finished(), f"the second trainer ended with {code}\n{w.logs()}"
    return f"refused with code {code}"


# ---- disk, network, messages, time --------------------------------------------------------------------------------


@fault(25, needs="tmpfs")
def full_disk(w: World, rng: random.Random) -> str:
    """The trainer ends with one line; when there is room again the same command goes on."""
    filler, run_dir = w.settings.run_dir / "filler", w.settings.run_dir
    w.wait(lambda: run_dir.is_dir(), 120, "the run directory")
    w.hands_off.add("trainer")
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    w.wait(lambda: w.trainer.poll() is not None, 240, "the trainer's end on a full disk")
    code = w.trainer.returncode
    filler.unlink()
    w.hands_off.discard("trainer")
    assert code in (0, 2), f"a full disk ended the trainer with code {code}\n{w.logs()}"
    return f"trainer ended with code {code}"


@fault(25, needs="two checkpoints")
def truncated_checkpoint(w: World, rng: random.Random) -> str:
    """The one before it is used, and what had been trained since is asked for again."""
    w.wait(lambda: w.finished() or w.step() >= 3, 240, "three steps")
    w.hands_off.add("trainer")
    w.send("trainer", signal.SIGKILL)
    w.trainer.wait()
    newest = max((w.settings.run_dir / "checkpoints").glob("step_??????"))
    victim = newest / rng.choice(["rank0.safetensors", "state.json", "delta_S.f32"])
    os.truncate(victim, rng.randrange(victim.stat().st_size))
    w.hands_off.discard("trainer")
    w.start_trainer()
    return f"{newest.name}/{victim.name}"


@fault(3)
def cut_a_command(w: World, rng: random.Random) -> str:
    return _cut(w, rng, upstream=True)


@fault(3)
def cut_a_reply(w: World, rng: random.Random) -> str:
    return _cut(w, rng, upstream=False)


def _cut(w: World, rng: random.Random, upstream: bool) -> str:
    before, after = w.stack.proxy.cuts, rng.choice([1, 30, 200, 1000])
    w.stack.proxy.cut_next(after, upstream)
    _until(w, lambda: w.stack.proxy.cuts > before, 15)
    if w.stack.proxy.cuts == before:
        w.stack.proxy.cut_next(1 << 40, upstream)
        raise Missed
    return f"after {after} bytes"


@fault(3)
def doubled_and_reordered_messages(w: World, rng: random.Random) -> str:
    """Every message that is waiting comes again, in another order, and some come twice."""
    told = []
    pids = [w.pid("trainer"), w.pid("sandbox-0"), w.pid("sandbox-1")]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        _until(w, lambda: w.redis.xlen(keys.ROLLOUTS) > 1, 6)
    finally:
        for pid in pids[1:]:
            os.kill(pid, signal.SIGCONT)
        _until(w, lambda: w.redis.xlen(keys.graded(w.settings.run_id)) > 1, 6)
        for stream in (keys.REQUESTS, keys.ROLLOUTS, keys.graded(w.settings.run_id)):
            entries = [(i, f) for i, f in w.redis.xrange(stream)]
            again = entries + rng.sample(entries, len(entries) // 2)
            rng.shuffle(again)
            pipe = w.redis.pipeline(transaction=True)
            for _, fields in again:
                pipe.xadd(stream, fields)
            pipe.execute()
            told.append(len(again))
        os.kill(pids[0], signal.SIGCONT)
    return f"requests, rollouts, grades: {told}"


@fault(2)
def garbage_in_every_stream(w: World, rng: random.Random) -> str:
    for stream in (keys.REQUESTS, keys.ROLLOUTS, keys.graded(w.settings.run_id)):
        w.redis.xadd(stream, {FIELD: rng.randbytes(rng.randrange(1, 5000))})
        w.redis.xadd(stream, {b"x": b"y"})
    return ""


@fault(4)
def slow_consumer(w: World, rng: random.Random) -> str:
    """Graders that run a fifth of the time; what waits stays within one step's groups."""
    longest = 0
    for _ in range(8):
        pids = [w.pid("sandbox-0"), w.pid("sandbox-1")]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        w.pause_for(0.4)
        longest = max(longest, w.redis.xlen(keys.ROLLOUTS))
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        w.pause_for(0.1)
    assert longest <= 64, f"{longest} rollout groups waiting"
    return f"at most {longest} groups waited"


@fault(6, needs="a C compiler")
def clock_jump(w: World, rng: random.Random) -> str:
    """The wall clock of Redis (expiry, idle times) and of a grader jumps, and back: locks, heartbeats and claims lapse."""
    hours = rng.choice([-30, -1, 1, 30])
    clock = w.root / "clock"
    _set(clock, hours * 3600)
    w.pause_for(rng.uniform(2, 5))
    _set(clock, 0)
    return f"{hours:+d} h and back"


def _set(clock: Path, seconds: int) -> None:
    with open(clock, "r+b") as file:  # in place: the services have it mapped
        file.write(struct.pack("<q", seconds))


def _until(w: World, done: Callable[[], object], limit: float) -> None:
    """Wait for a favourable moment; a fault that does not find one strikes all the same."""
    end = time.monotonic() + limit
    while not done() and not w.finished() and time.monotonic() < end:
        w.tend()
        time.sleep(0.005)


# ---- what the machine must have -----------------------------------------------------------------------------------


def available(like_gpu: bool = False) -> list[Fault]:
    """The faults that this machine can inject. like_gpu: into runs that keep one checkpoint until they end."""
    root = os.geteuid() == 0 and shutil.which("mount") is not None
    has = {
        "": True,
        "two checkpoints": not like_gpu,
        "tmpfs": root,
        "a C compiler": bool(shutil.which("cc") or shutil.which("gcc")),
    }
    return [f for f in FAULTS.values() if has[f.needs]]
