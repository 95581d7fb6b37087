"""docker-compose.yml as plain processes: what changes on the way, what does not, and that it really runs."""

import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import redis
from compose_tool import ROOT, compose_config

from common import acl
from common.errors import ConfigError
from common.ports import free_port
from deploy import compose, processes, secrets, supervise
from experiments.launch.stack import redis_server

VALUES = {"COMPOSE_PROFILES": "cpu", "PRESET": "demo", "ARM": "projected", "SEED": "0"}


def planned(profile="cpu", state=Path("/state"), **values):
    document = compose.read(ROOT / "docker-compose.yml", VALUES | values)
    services = compose.services(document, ROOT, [profile])
    return services, *processes.plan(services, processes.Places(ROOT, state))


# ---------------------------------------------------------------------------------------------- translation


def test_nothing_of_a_container_is_left_in_a_process():
    for profile in ("cpu", "one-gpu", "gpu", "viewer"):
        _, programs, _ = planned(profile)
        for program in (p for group in programs.values() for p in group):
            text = json.dumps([program.command, program.health, list(program.environment.values())])
            assert not re.search(r"/app/|/run/secrets|0\.0\.0\.0|redis:\d|/etc/", text), f"{program.name}: {text}"
            assert Path(program.command[0]).is_file()


def test_what_is_no_place_stays_as_it_is():
    """Compared with docker compose, argument by argument: only paths, addresses and programs differ."""
    theirs = compose_config(["cpu"])["services"]
    _, programs, _ = planned("cpu")
    for name in ("sandbox", "ref_server-cpu", "trainer-cpu", "prepare"):
        mine, given = programs[name][0].command, theirs[name]["command"]
        assert len(mine) == len(given)
        for ours, their in zip(mine[1:], given[1:], strict=True):
            assert ours == their or their.startswith("/app/") or "0.0.0.0" in their, (ours, their)


def test_replicas_take_neighbouring_ports():
    _, programs, _ = planned(SANDBOX_REPLICAS="3", SANDBOX_PORT="8300")
    assert [p.ports for p in programs["sandbox"]] == [[8300], [8301], [8302]]
    assert "port=8302" in programs["sandbox"][2].command
    assert programs["sandbox"][2].health[-1] == "http://127.0.0.1:8302/healthz"
    assert programs["sandbox"][2].environment["REDIS_URL"] == "redis://127.0.0.1:6379/0", "Redis has no second port"


def test_places():
    services, programs, _ = planned(SECRETS_DIR="/elsewhere", RUNS_DIR="/big/runs")
    assert programs["sandbox"][0].environment["REDIS_PASSWORD_FILE"] == "/elsewhere/redis_sandbox"
    assert "/big/runs/.stack/current/trainer.json" in programs["trainer-cpu"][0].command
    redis_command = programs["redis"][0].command
    assert redis_command[redis_command.index("--dir") + 1] == "/state/volumes/redis/data"
    assert redis_command[1] == str(ROOT / "deploy/redis/redis.conf")
    assert redis_command[redis_command.index("--aclfile") + 1] == "/elsewhere/redis_users.acl"
    assert "HOME" not in programs["trainer-cpu"][0].environment
    assert next(iter(services)) in ("redis", "prepare", "prometheus")


def test_what_is_not_run_says_why(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    services = compose.services(compose.read(ROOT / "docker-compose.yml", VALUES), ROOT, ["cpu"])
    assert "not installed" in processes._missing(services["prometheus"])
    assert processes._missing(services["sandbox"]) == ""


def test_prometheus_scrapes_the_processes():
    services, programs, _ = planned(SANDBOX_REPLICAS="3", SANDBOX_PORT="8300")
    config = {
        "rule_files": ["rules/*.yml"],
        "scrape_configs": [
            {
                "job_name": "ref_server",
                "file_sd_configs": [{"files": ["targets/x.yml"]}],
                "static_configs": [{"targets": ["ref_server:8100"]}],
            },
            {"job_name": "sandbox", "dns_sd_configs": [{"names": ["sandbox"], "type": "A", "port": 8200}]},
            {"job_name": "prometheus", "static_configs": [{"targets": ["localhost:9090"]}]},
        ],
    }
    found = processes.localise_prometheus(config, ROOT / "deploy/prometheus", programs, services)
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in found["scrape_configs"]}
    assert targets["ref_server"] == ["127.0.0.1:8100"]
    assert targets["sandbox"] == ["127.0.0.1:8300", "127.0.0.1:8301", "127.0.0.1:8302"]
    assert targets["prometheus"] == ["127.0.0.1:9090"]
    assert not any("file_sd_configs" in job or "dns_sd_configs" in job for job in found["scrape_configs"])
    assert found["rule_files"] == [str(ROOT / "deploy/prometheus/rules/*.yml")]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = ["nobody:1"]
    with pytest.raises(ConfigError, match="nobody:1"):
        processes.localise_prometheus(config, ROOT, programs, services)


@pytest.mark.parametrize(
    ("text", "complaint"), [("$HOME", "cannot read"), ("${NEVER_SET}", "NEVER_SET"), ("${A:?no}", "cannot read")]
)
def test_interpolation_refuses_what_it_does_not_know(text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        compose.interpolate(text, {})


def test_interpolation():
    assert compose.interpolate("${A:-x}-${B}-$$", {"B": "b", "A": ""}) == "x-b-$"
    assert [compose.seconds(t, 0) for t in ("90s", "1m30s", "500ms")] == [90, 90, 0.5]
    with pytest.raises(ConfigError, match="no duration"):
        compose.seconds("soon", 0)


def test_the_configuration_keeps_values_as_they_are(tmp_path):
    """Percent signs and quotes through supervisord's own parser."""
    from supervisor.options import ServerOptions

    services, programs, _ = planned(state=tmp_path, RUN_SETTINGS="a=50% b=\"q\" c='s'")
    path = tmp_path / "supervisord.conf"
    (tmp_path / "logs").mkdir()
    path.write_text(supervise.render(services, programs, processes.Places(ROOT, tmp_path)))
    options = ServerOptions()
    options.realize(["-c", str(path)])
    found = {p.name: p for group in options.process_group_configs for p in group.process_configs}
    import shlex

    assert shlex.split(found["prepare"].command) == programs["prepare"][0].command
    assert found["sandbox-1"].environment["REDIS_USERNAME"] == "sandbox"
    assert found["trainer-cpu"].stopwaitsecs == 180
    assert found["sandbox-0"].autorestart is not found["prepare"].autorestart
    assert all(p.autostart is False for p in found.values())


def test_a_taken_port_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        _, programs, _ = planned(SANDBOX_PORT=str(port))
        with pytest.raises(ConfigError, match=rf"port {port}.*SANDBOX_PORT"):
            supervise.require_free({"sandbox": programs["sandbox"]})


# ---------------------------------------------------------------------------------------------- secrets


def test_secrets_are_made_once_and_kept(tmp_path):
    folder = tmp_path / "secrets"
    new = secrets.ensure(folder)
    first = {p.name: p.read_text() for p in folder.iterdir()}
    assert len({first[name] for name in new}) == len(new) == 6 and all(len(first[name]) >= 43 for name in new)
    assert secrets.ensure(folder) == []
    assert {p.name: p.read_text() for p in folder.iterdir()} == first
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o444 for p in folder.iterdir())
    assert not any(first[name] in first["redis_users.acl"] for name in new), "Redis's file holds digests only"
    (folder / "redis_sandbox").unlink()
    assert secrets.ensure(folder) == ["redis_sandbox"]
    assert (folder / "redis_users.acl").read_text() != first["redis_users.acl"]


def test_a_redis_with_these_files_lets_the_services_in_and_nobody_else(tmp_path):
    """The very command of the compose file, on a free port."""
    folder, port = tmp_path / "secrets", free_port()
    secrets.ensure(folder)
    _, programs, _ = planned(state=tmp_path, SECRETS_DIR=str(folder), REDIS_PORT=str(port))
    (tmp_path / "volumes/redis/data").mkdir(parents=True)
    program = programs["redis"][0]
    process = subprocess.Popen(program.command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            if subprocess.run(program.health, env=os.environ, capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        assert subprocess.run(program.health, capture_output=True).returncode == 0, "the compose file's own healthcheck"
        for user in acl.USERS:
            password = (folder / f"redis_{user}").read_text()
            assert redis.Redis(port=port, username=user, password=password).ping()
            with pytest.raises(redis.AuthenticationError):
                redis.Redis(port=port, username=user, password="guess").ping()
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()
        sandbox = redis.Redis(port=port, username="sandbox", password=(folder / "redis_sandbox").read_text())
        for forbidden in (("GET", "rs:delta:r:version"), ("CONFIG", "GET", "*"), ("FLUSHALL",), ("ACL", "LIST")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                sandbox.execute_command(*forbidden)
        monitor = redis.Redis(port=port, username="monitor", password=(folder / "redis_monitor").read_text())
        assert monitor.xrevrange("rs:dead", count=1) == [], "dead letters can be read, work cannot"
        with pytest.raises(redis.exceptions.NoPermissionError):
            monitor.xrevrange("rs:rollouts", count=1)
        assert monitor.config_get("appendonly") == {"appendonly": "yes"}
        assert monitor.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    finally:
        process.terminate()
        process.wait()
    assert subprocess.run(program.health, capture_output=True).returncode != 0, "and the check fails when Redis is gone"
    assert redis_server() == program.command[0]


def test_the_newest_redis_server_is_taken_and_one_too_old_refused(tmp_path, monkeypatch):
    for name, version in (("first", "6.2.14"), ("second", "99.0.1")):
        server = tmp_path / name / "redis-server"
        server.parent.mkdir()
        server.write_text(f"#!/bin/sh\necho Redis server v={version} sha=0:0\n")
        server.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'first'}:{tmp_path / 'second'}:{os.environ['PATH']}")
    assert redis_server() == str(tmp_path / "second/redis-server"), "an activated environment has the older one first"
    with pytest.raises(ConfigError, match=r"redis-server is 99\.0\.1, wanted is 100\.0 or newer: run `make setup`"):
        redis_server(at_least=(100, 0))


# ---------------------------------------------------------------------------------------------- the commands


def deploy(*arguments, env, limit=540):
    return subprocess.run([sys.executable, "-m", "deploy", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=limit,
                          env={**os.environ, **env})  # fmt: skip


def test_user_errors_are_one_line(short_tmp):
    env = {"STACK_DIR": str(short_tmp / "s"), "SECRETS_DIR": str(short_tmp / "x")}
    for arguments, more, complaint in (
        (["fly"], {}, "unknown command"),
        (["up"], {"COMPOSE_PROFILES": "tpu"}, "unknown profile 'tpu'"),
    ):
        done = deploy(*arguments, env=env | more)
        assert done.returncode == 2 and complaint in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert deploy("down", env=env).stdout.strip() == "nothing is up"
    assert deploy("ps", env=env).stdout.strip() == "nothing is up"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_up_trains_and_down_leaves_nothing(short_tmp):
    """`make up` with the cpu profile and two generators, a run to its end, `make down`."""
    base = free_port(60)
    names = ("REDIS_PORT", "REF_SERVER_PORT", "TRAINER_PORT", "SANDBOX_PORT", "PROMETHEUS_PORT", "REDIS_EXPORTER_PORT")
    ports = {name: str(base + 10 * i) for i, name in enumerate(names)}
    env = ports | {
        "COMPOSE_PROFILES": "cpu", "STACK_DIR": str(short_tmp / "s"), "SECRETS_DIR": str(short_tmp / "x"),
        "RUNS_DIR": str(short_tmp / "r"), "REF_SERVER_REPLICAS": "2", "OMP_NUM_THREADS": "1",
        "RUN_SETTINGS": "steps=4 groups_per_step=4 group_size=4 eval_every=0 eval_problems=2 eval_samples=1",
    }  # fmt: skip
    try:
        done = deploy("up", env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        before = pids(deploy("ps", env=env).stdout)
        second = deploy("up", env=env)
        assert second.returncode == 0, second.stdout + second.stderr
        after = pids(deploy("ps", env=env).stdout)
        assert {name: after[name] for name in ("redis", "sandbox")} == {
            name: before[name] for name in ("redis", "sandbox")
        }
        rows = short_tmp / "r/demo-projected-s0/status.json"
        deadline = time.monotonic() + 240
        while json.loads(rows.read_text())["state"] != "finished":
            assert time.monotonic() < deadline, (short_tmp / "s/logs/trainer-cpu.log").read_text()
            time.sleep(1)
        assert len((rows.parent / "metrics.jsonl").read_text().splitlines()) == 4
        versions = [version(int(ports["REF_SERVER_PORT"]) + i) for i in (0, 1)]
        assert max(versions) == 4 and min(versions) >= 3, "the idle replica has followed every push"
        shown = deploy("ps", env=env).stdout
        assert "RUNNING" in shown and "EXITED (0)" in shown, shown
        another = deploy("up", env=env | {"SEED": "1"})
        assert another.returncode == 0, another.stdout + another.stderr
        assert (short_tmp / "r/demo-projected-s1").is_dir(), "another run, on the services that were up"
        assert pids(deploy("ps", env=env).stdout)["redis"] == before["redis"]
    finally:
        down = deploy("down", env=env)
    assert down.returncode == 0, down.stderr
    assert supervise.orphans(processes.Places(ROOT, short_tmp / "s")) == []
    for port in ports.values():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(port))) != 0


def pids(shown):
    """Name -> process id, of the lines that `ps` prints for what runs; replicas by their first."""
    running = [line.split() for line in shown.splitlines() if "RUNNING" in line]
    return {
        words[0].rpartition("-")[0] if words[0][-1].isdigit() else words[0]: words[2] for words in reversed(running)
    }


def version(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
        return json.load(answer)["policy_version"]
