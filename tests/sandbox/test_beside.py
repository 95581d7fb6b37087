"""The programs of one completion, in turn and beside each other: who runs what when, with tasks that only sleep."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.sandbox.jail.executor import SandboxError
from services.sandbox.verdicts import beside as beside_module
from services.sandbox.verdicts.beside import PATIENCE_S, Beside, Line, Task


class Clock:
    """A program's clock as Watch hands it over."""

    def __init__(self, own=1.0, waited=0.0, cpu=1.0):
        self.own, self.waited, self.cpu = own, waited, cpu

    def own_s(self):
        return self.own

    def waited_s(self):
        return self.waited

    def cpu_s(self):
        return self.cpu


class Jail:
    """In place of an executor: a program is a sleep that asks every 10 ms whether it is still wanted."""

    superfluous = None
    closed = False

    def sleep(self, seconds, step=1, clock=None):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.superfluous is not None and self.superfluous(step, clock or Clock()):
                return "stopped"
            time.sleep(0.01)
        return "done"

    def close(self):
        self.closed = True


@pytest.fixture
def beside(monkeypatch):
    monkeypatch.setattr(beside_module, "Executor", Jail)
    made = Beside(6, cores=2)
    yield made
    made.close()


def task(name, seconds, threads=None, **rules):
    def run(jail):
        if threads is not None:
            threads[name] = threading.current_thread().name
        return jail.sleep(seconds)

    return Task(name, run, **rules)


def test_quick_programs_run_in_turn_in_the_lane_and_start_no_fork_server(beside):
    threads: dict[str, str] = {}
    found = beside.run_all([task(name, 0.01, threads) for name in "abc"], Jail())
    assert list(found.items()) == [("a", "done"), ("b", "done"), ("c", "done")]
    assert set(threads.values()) == {threading.current_thread().name}
    assert beside.executors._idle == []


def test_what_waits_for_a_slow_program_gets_a_helper_and_that_one_too(beside):
    threads: dict[str, str] = {}
    started = time.monotonic()
    found = beside.run_all([task(name, 1.0, threads) for name in "abc"], Jail())
    assert set(found.values()) == {"done"}
    assert len(set(threads.values())) == 3
    assert time.monotonic() - started < 2.0, "not one after the other"
    assert time.monotonic() - started > 1.0 + 2 * PATIENCE_S, "a helper comes only when it is needed"


def spared_by(name, answer):
    return {
        "decided": lambda results: answer if results.get(name) == "done" else None,
        "may_be_spared": lambda results, steps: name not in results,
    }


@pytest.mark.parametrize("others", [0, 2])
def test_a_program_that_may_be_spared_starts_early_on_a_free_core_only(beside, others):
    """Either way it says the same."""
    ran: dict[str, str] = {}
    tasks = [task("a", 0.8), task("b", 5.0, ran, **spared_by("a", "spared"))]
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(beside.run_all, [task("x", 1.2)], Jail()) for _ in range(others)]
        time.sleep(0.05)
        started = time.monotonic()
        assert beside.run_all(tasks, Jail()) == {"a": "done", "b": "spared"}
        assert time.monotonic() - started < 3.0, "it is not waited for"
        assert all(future.result() == {"x": "done"} for future in busy)
    assert bool(ran) is (others == 0)


@pytest.mark.parametrize("waiting", [False, True])
def test_no_program_that_may_be_spared_takes_a_core_that_a_completion_waits_for(beside, waiting):
    beside._cores = 1
    ran: dict[str, str] = {}

    def completion(*tasks):
        with beside.place():
            return beside.run_all(tasks, Jail())

    with ThreadPoolExecutor(2) as lanes:
        first = lanes.submit(completion, task("a", 0.8), task("b", 5.0, ran, **spared_by("a", "spared")))
        time.sleep(0.05)
        if waiting:
            assert lanes.submit(completion, task("x", 0.1)).result() == {"x": "done"}
        assert first.result() == {"a": "done", "b": "spared"}
    assert bool(ran) is not waiting


def test_one_helper_waits_for_a_completion_and_not_all_of_them(beside):
    """A program that may not start early must not keep the helpers of other completions."""
    slow = Task("a", lambda jail: jail.sleep(1.5, clock=Clock(own=0.3, waited=0.5)))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(beside.run_all, [slow, task("b", 0.0, **spared_by("a", "spared"))], Jail())
        time.sleep(1.2)
        assert len([t for t in threading.enumerate() if t.name.startswith("program")]) <= 2
        assert first.result() == {"a": "done", "b": "spared"}


def test_a_program_that_waits_for_a_core_lets_nothing_start_early(beside):
    ran: dict[str, str] = {}
    slow = Task("a", lambda jail: jail.sleep(0.8, clock=Clock(own=0.3, waited=0.5)))
    beside.run_all([slow, task("b", 5.0, ran, **spared_by("a", "spared"))], Jail())
    assert ran == {}


@pytest.mark.parametrize("in_helper", [False, True])
def test_a_failing_jail_ends_the_others_and_is_raised_in_the_lane(beside, in_helper):
    def fail(jail):
        time.sleep(0.3)
        raise SandboxError("no memory to fork")

    tasks = [task("a", 30.0), Task("b", fail)] if in_helper else [Task("b", fail), task("a", 30.0)]
    started = time.monotonic()
    with pytest.raises(SandboxError, match="no memory to fork"):
        beside.run_all(tasks, Jail())
    assert time.monotonic() - started < 5.0
    assert beside._work() == 0


def test_without_a_fork_server_for_helpers_the_lane_does_all(beside, monkeypatch):
    def refuse(**_):
        raise SandboxError("no more processes")

    monkeypatch.setattr(beside_module, "Executor", refuse)
    assert beside.run_all([task("a", 0.4), task("b", 0.1)], Jail()) == {"a": "done", "b": "done"}


def test_no_more_completions_compute_than_there_are_cores_and_those_that_sleep_give_way(beside):
    now, most, lock = 0, 0, threading.Lock()

    def completion(clock):
        nonlocal now, most

        def run(jail):
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            jail.sleep(0.5, clock=clock)
            with lock:
                now -= 1

        with beside.place():
            beside.run_all([Task("a", run)], Jail())

    for clock, expected in ((Clock(), 2), (Clock(cpu=0.0), 4)):
        now = most = 0
        with ThreadPoolExecutor(4) as lanes:
            list(lanes.map(completion, [clock] * 4))
        assert most == expected


def test_idle_fork_servers_are_ended(beside):
    beside.run_all([task("a", 0.4), task("b", 0.1)], Jail())
    ((_, jail),) = beside.executors._idle
    beside.executors.reap()
    assert not jail.closed, "not at once: the next slow completion wants it"
    beside.executors.reap(idle_s=0.0)
    assert jail.closed
    assert beside.executors._idle == []


def test_without_helpers_tasks_run_in_order_and_the_spared_ones_not_at_all():
    ran: dict[str, str] = {}
    tasks = [task("a", 0.0), task("b", 0.0, ran, **spared_by("a", "spared")), task("c", 0.0, ran)]
    assert Line(tasks).work(Jail()) == {"a": "done", "b": "spared", "c": "done"}
    assert list(ran) == ["c"]
