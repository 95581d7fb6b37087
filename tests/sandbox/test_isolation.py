"""Each wall is attacked (selftest), the seccomp filter is run instruction by instruction, user rights are tried."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from services.sandbox.jail import selftest, syscalls
from services.sandbox.jail.executor import Executor, landlock_present

ROOT = Path(__file__).parents[2]
needs_landlock = pytest.mark.skipif(not landlock_present(), reason="this kernel has no Landlock ABI 6: no full jail")


@needs_landlock
@pytest.mark.parametrize("outer", [True, False])
def test_every_probe_of_the_self_test_finds_its_wall(outer):
    with Executor(outer=outer) as executor:
        walls = selftest.probe(executor)
    assert len(walls) == len(selftest.PROBES) + 1
    assert [wall for wall in walls if not wall.present] == []


def test_the_probes_can_fail():
    """Without walls the same probes find them absent: the self-test does not pass by itself."""
    with Executor("best_effort", outer=False, switch_off=("landlock", "seccomp", "limits", "uid")) as executor:
        absent = {wall.name.split(":")[0] for wall in selftest.probe(executor) if not wall.present}
    assert absent >= {"tcp", "udp", "unix", "read", "fork", "memory", "kill parent", "chmod"}


@needs_landlock
def test_the_command_prints_every_layer(capsys):
    assert selftest.main(["--require-isolation"]) == 0
    printed = capsys.readouterr().out
    for name in ("landlock", "seccomp", "outer wall", "tcp", "kill", "read"):
        assert name in printed
    assert "ABSENT" not in printed


def run_filter(code: bytes, number: int, args: tuple[int, ...] = (), arch: int | None = None) -> int:
    """A classic-BPF interpreter, enough for our filters: what the kernel would return."""
    arch = syscalls.AUDIT_ARCH["x86_64"] if arch is None else arch
    data = struct.pack("<iIQ6Q", number, arch, 0, *args, *[0] * (6 - len(args)))
    program = [struct.unpack_from("<HBBI", code, at) for at in range(0, len(code), 8)]
    at = accumulator = 0
    while True:
        op, jt, jf, k = program[at]
        at += 1
        if op == 0x20:
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif op == 0x54:
            accumulator &= k
        elif op == 0x15:
            at += jt if accumulator == k else jf
        elif op == 0x35:
            at += jt if accumulator >= k else jf
        elif op == 0x06:
            return k
        else:
            raise AssertionError(hex(op))


@pytest.fixture
def x86(monkeypatch):
    monkeypatch.setattr(syscalls.platform, "machine", lambda: "x86_64")


def test_outer_filter(x86):
    code = syscalls.outer_policy().assemble()
    eperm, enosys = syscalls.EPERM, syscalls.ENOSYS
    assert run_filter(code, 0) == syscalls.ALLOW  # read
    assert run_filter(code, 41) == eperm and run_filter(code, 59) == eperm  # socket, execve
    assert run_filter(code, 101) == eperm and run_filter(code, 425) == eperm  # ptrace, io_uring_setup
    assert run_filter(code, 53) == syscalls.ALLOW and run_filter(code, 57) == syscalls.ALLOW  # socketpair, fork
    assert run_filter(code, 302, (0,)) == syscalls.ALLOW and run_filter(code, 302, (7,)) == eperm  # prlimit64
    assert run_filter(code, 72, (3, 8)) == eperm and run_filter(code, 72, (3, 1)) == syscalls.ALLOW  # fcntl
    assert run_filter(code, 470) == enosys and run_filter(code, 999) == enosys
    assert run_filter(code, 0x40000000 | 39) == syscalls.KILL
    assert run_filter(code, 0, arch=0x40000003) == syscalls.KILL  # i386 entry


def test_job_filter(x86):
    code = syscalls.job_policy().assemble()
    assert run_filter(code, 57) == syscalls.EPERM and run_filter(code, 435) == syscalls.ENOSYS  # fork, clone3
    assert run_filter(code, 56, (17,)) == syscalls.EPERM  # clone of a process
    assert run_filter(code, 56, (0x3D0F00,)) == syscalls.ALLOW  # clone of a thread, as the C library asks
    assert run_filter(code, 62, (syscalls.SELF, 9)) == syscalls.ALLOW and run_filter(code, 62, (1, 0)) == syscalls.EPERM
    assert run_filter(code, 62, (0xFFFFFFFF, 9)) == syscalls.EPERM  # kill(-1)
    assert run_filter(code, 157, (15,)) == syscalls.ALLOW and run_filter(code, 157, (1,)) == syscalls.EPERM  # prctl


def test_both_machines_assemble_and_a_third_is_refused(monkeypatch):
    monkeypatch.setattr(syscalls.platform, "machine", lambda: "aarch64")
    arm = syscalls.AUDIT_ARCH["aarch64"]
    code = syscalls.outer_policy().assemble()
    assert run_filter(code, 198, arch=arm) == syscalls.EPERM  # socket
    assert run_filter(syscalls.job_policy().assemble(), 220, (17,), arch=arm) == syscalls.EPERM  # clone
    monkeypatch.setattr(syscalls.platform, "machine", lambda: "sparc64")
    with pytest.raises(OSError, match="sparc64"):
        syscalls.outer_policy()


def test_two_rules_for_one_call_are_an_error(x86):
    with pytest.raises(ValueError, match="two rules"):
        syscalls.SeccompRules().refuse("fork").refuse("fork").assemble()


def test_readable_paths_hold_no_place_for_secrets():
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from services.sandbox.jail import isolation as i; "
        "print(*i.interpreter_files(), sep='\\n')"
    )
    paths = subprocess.check_output([sys._base_executable, "-I", "-S", "-c", program], text=True).splitlines()
    assert any(path.endswith("/os.py") for path in paths)
    forbidden = {"/", "/etc", "/home", "/root", "/tmp", "/proc", "/sys", "/usr", "/usr/lib", "/usr/local/lib", "/var"}
    assert not forbidden & set(paths)
    assert not any("site-packages" in path for path in paths)


@needs_landlock
@pytest.mark.parametrize("secret", ["environment", "redis"])
def test_no_secret_of_the_worker_is_reachable(secret, monkeypatch):
    import socket

    monkeypatch.setenv("REDIS_PASSWORD", "hunter2-canary")
    with socket.create_server(("127.0.0.1", 0)) as redis, Executor() as executor:
        redis.settimeout(0.2)
        if secret == "environment":
            source = (
                "import os, glob\nfound = repr(dict(os.environ))\nfor p in glob.glob('/proc/*/environ') + "
                "['/proc/self/environ', '/proc/1/environ']:\n    try: found += repr(open(p, 'rb').read())\n"
                "    except OSError: pass\nprint('hunter2-canary' in found, len(found))"
            )
            assert executor.run_script(source).stdout == b"False 2\n"
        else:
            source = f"import socket\nsocket.create_connection(('127.0.0.1', {redis.getsockname()[1]}), 1).send(b'x')"
            assert b"PermissionError" in executor.run_script(source).stderr
            with pytest.raises(TimeoutError):
                redis.accept()


@needs_landlock
def test_jobs_end_when_their_supervisor_is_killed(tmp_path):
    """SIGKILL of the supervisor leaves no fork server, no job and no directory behind."""
    import os
    import signal
    import time

    program = (
        "from services.sandbox.jail.executor import *\nimport sys\n"
        f"with Executor(scratch_dir={str(tmp_path)!r}) as e:\n"
        "    print(e.pid, bool(e.layers['outer wall']), flush=True)\n"
        "    e.run_script('import time; time.sleep(300)', Limits(wall_s=300))\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    server, no_wall = supervisor.stdout.readline().split()
    time.sleep(0.5)
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()
    supervisor.stdout.close()
    for _ in range(100):
        if not running(int(server)):
            assert no_wall == "True" or os.listdir(tmp_path) == []
            return
        time.sleep(0.05)
    raise AssertionError("the fork server outlived its supervisor")


def running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@needs_landlock
def test_the_outer_wall_hides_what_landlock_cannot():
    """stat() is beyond Landlock: where there is a mount namespace, users' files are not even there."""
    with Executor() as executor:
        if executor.layers["outer wall"]:
            pytest.skip(f"no outer wall here: {executor.layers['outer wall']}")
        look = "import os\nprint(os.path.exists('/proc/self'), os.path.exists('/sys/kernel'), os.listdir('.'))"
        assert executor.run_script(look).stdout == b"False False []\n"
