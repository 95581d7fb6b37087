"""Every row of the attack sample with its side effects, and programs of our own (attack_programs.py)."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from services.sandbox import oracle_cli
from services.sandbox.attack_programs import RIGHT, WRONG
from services.sandbox.jail.executor import Limits, landlock_present
from services.sandbox.verdicts.oracle import Oracle

SAMPLE = Path(__file__).parents[3] / "shared/data/attacks_sample.jsonl.gz"
TESTS = [f"assert Solution().addTwo(x = {x}) == {x + 2}" for x in (2, 10, -5)]
LIMITS = Limits(wall_s=20.0, quiet_s=1.5, cpu_s=10, memory_mb=1024)
needs_landlock = pytest.mark.skipif(not landlock_present(), reason="this kernel has no Landlock ABI 6: no full jail")
needs_sample = pytest.mark.skipif(not SAMPLE.exists(), reason=f"{SAMPLE} is absent (a user's clone has none)")


@pytest.fixture(scope="module")
def oracle():
    os.environ["SANDBOX_SECRET"] = "canary"
    with Oracle() as oracle:
        yield oracle
    del os.environ["SANDBOX_SECRET"]


def descendants() -> set[int]:
    """Pids of all processes below this one."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[1])
    found, size = {os.getpid()}, 0
    while size != len(found):
        size = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found - {os.getpid()}


@needs_landlock
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_is_never_right(oracle, name):
    before = descendants()
    verdict = oracle.grade(WRONG[name], TESTS, method="addTwo", limits=LIMITS)
    assert not verdict.correct, verdict
    assert verdict.reason
    assert len(descendants()) <= max(2, len(before)), "a process outlived its program"
    assert os.listdir(oracle.executor._scratch_fd) == []
    assert oracle.executor.replaced == 0, "it reached the fork server"


@needs_landlock
@pytest.mark.parametrize("name", RIGHT)
def test_an_honest_program_is_right(oracle, name):
    verdict = oracle.grade(RIGHT[name], TESTS, method="addTwo", limits=Limits(wall_s=30, quiet_s=10, cpu_s=20))
    assert verdict.correct, verdict


def running(pids: set[int]) -> list[str]:
    """Command lines, without the tracker that multiprocessing keeps for the life of the interpreter."""
    lines = []
    for pid in pids:
        with contextlib.suppress(OSError):
            lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
    return [line for line in lines if "resource_tracker" not in line]


class Listener:
    """A TCP listener that counts who comes."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_server((host, int(port)))
        self.seen = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.socket.accept()[0].close()
                self.seen += 1


def sample() -> list[dict]:
    with gzip.open(SAMPLE, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def settled(row: dict, answer: dict, most: float) -> dict:
    """The answer; where a busy machine stretched it, or gave the program hardly a core, the one with no other row beside it.
    The promise of `most` seconds is for a free core."""
    if answer["wall_s"] <= most and "got no core" not in answer["reason"]:
        return answer
    with Oracle() as oracle:
        verdict = oracle.grade(row["code"], row["tests"], row.get("setup_code"), row.get("method") or "")
    return {"gt_correct": verdict.correct, "wall_s": verdict.wall_s}


@needs_landlock
@needs_sample
@pytest.mark.slow
def test_every_sample_row_by_the_command_line(tmp_path, monkeypatch):
    """Verdicts, order, wall time, and everything the probes say must not have happened."""
    rows = sample()
    probes = [row["side_effect_probe"] for row in rows if "side_effect_probe" in row]
    before = descendants()
    listeners = {address: Listener(address) for address in {p["tcp_connect"] for p in probes if "tcp_connect" in p}}
    files = {
        name: f"canary {time.time()}"
        for p in probes
        for key in ("canary_file", "file_unchanged")
        for name in ([p[key]] if key in p else [])
    }
    for name, text in files.items():
        Path(name).write_text(text)
        os.chmod(name, 0o666)
    monkeypatch.setenv("SANDBOX_SECRET", "canary")
    output = tmp_path / "out.jsonl.gz"
    try:
        assert oracle_cli.main(["--input", str(SAMPLE), "--output", str(output), "--workers", "2"]) == 0
        time.sleep(max([p.get("check_after_s", 0) for p in probes]))
        with gzip.open(output, "rt") as file:
            answers = [json.loads(line) for line in file]
        assert [answer["id"] for answer in answers] == [row["id"] for row in rows]
        for row, answer in zip(rows, answers, strict=True):
            most = row.get("side_effect_probe", {}).get("max_wall_s", 60)
            final = settled(row, answer, most)
            assert row.get("either_ok") or final["gt_correct"] is row["expect"]["gt_correct"], (row["id"], answer)
            assert final["wall_s"] <= most, (row["id"], answer)
        for probe in probes:
            absent = probe.get("path_must_not_exist", [])
            for path in [absent] if isinstance(absent, str) else absent:
                assert not Path(path).exists(), path
        assert {address: listener.seen for address, listener in listeners.items()} == dict.fromkeys(listeners, 0)
        assert {name: Path(name).read_text() for name in files} == files
        assert running(descendants() - before) == []
    finally:
        for listener in listeners.values():
            listener.socket.close()
        for name in files:
            Path(name).unlink()


@needs_landlock
@needs_sample
def test_every_sample_row_but_the_hangs(oracle):
    for row in sample():
        if row["category"] in ("hang_uncatchable", "resource_cpu"):
            continue
        verdict = oracle.grade(row["code"], row["tests"], method=row["method"], limits=LIMITS)
        assert row.get("either_ok") or verdict.correct is row["expect"]["gt_correct"], (row["id"], verdict)


def memory_holds(pid: int, mark: bytes) -> bool:
    """Whether the writable memory of a process contains `mark`. Raises OSError where we may not look."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span, mode = line.split()[:2]
            if mode.startswith("rw") and "[v" not in line:
                low, high = (int(part, 16) for part in span.split("-"))
                memory.seek(low)
                with contextlib.suppress(OSError):
                    if mark in memory.read(high - low):
                        return True
    return False


@needs_landlock
def test_the_fork_server_never_holds_a_program_nor_a_test(oracle):
    """Read its memory from outside: neither an earlier submission nor the text of a test went through it."""
    mark = f"mark-{time.time_ns()}"
    tests = [f"assert Solution().addTwo(2) == 4, '{mark}'", f"assert '{mark}' and Solution().addTwo(2) == 4"]
    assert oracle.grade(f"MARK = '{mark}'\n" + RIGHT["plain"], tests).correct
    assert memory_holds(os.getpid(), mark.encode()), "the search does not find what is there"
    servers = descendants()
    assert servers
    try:
        for pid in servers:
            assert not memory_holds(pid, mark.encode()), pid
    except PermissionError:
        pytest.skip("not allowed to read the memory of our own fork server (it is not dumpable; this needs root)")
