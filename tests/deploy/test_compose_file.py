"""docker-compose.yml against the Compose Specification (docker compose carries its schema) and against this repository."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from compose_tool import PROFILES, ROOT, compose_config

from common import settings
from deploy import compose
from experiments.design import arms, presets

OURS = ("ref_server", "trainer", "sandbox", "prepare", "report", "viewer", "status")
EXAMPLE = (ROOT / ".env.example").read_text()
TEXT = (ROOT / "docker-compose.yml").read_text()


def ours(name):
    return name.startswith(OURS)


# ---------------------------------------------------------------------------------------------- the specification


def test_every_profile_is_valid(everything):
    named = {"redis", "sandbox", "prometheus", "grafana", "redis_exporter", "prepare", "report", "viewer", "status"}
    assert set(everything["services"]) >= named
    for profile in ("cpu", "one-gpu", "gpu"):
        names = set(compose_config([profile])["services"])
        assert {n for n in names if n.startswith(("ref_server", "trainer"))} == {
            f"ref_server-{profile}",
            f"trainer-{profile}",
        }


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("read_only: true", "read_onyl: true", "read_onyl"),
        ("condition: service_healthy", "condition: service_helthy", "depends_on.redis.condition"),
        ("secrets: [redis_sandbox]", "secrets: [redis_nobody]", "redis_nobody"),
        ("networks: [grading]", "networks: [gradign]", "gradign"),
    ],
)
def test_a_broken_file_is_refused(old, new, complaint, tmp_path):
    """The check above can fail."""
    path = tmp_path / "docker-compose.yml"
    path.write_text(TEXT.replace(old, new, 1))
    assert path.read_text() != TEXT
    with pytest.raises(subprocess.CalledProcessError) as error:
        compose_config(PROFILES, file=path)
    assert complaint in error.value.stderr


@pytest.mark.parametrize("profile", ["cpu", "one-gpu", "gpu", "viewer"])
@pytest.mark.parametrize("env", [{}, {"SANDBOX_REPLICAS": "5", "REDIS_PORT": "6400", "RUN_SETTINGS": "lr=0.5 steps=3"}])
def test_our_reading_is_that_of_docker_compose(profile, env):
    theirs = compose_config([profile], env)["services"]
    values = compose.environment(ROOT, env) if not (ROOT / ".env").exists() else {**_example_values(), **env}
    mine = compose.services(compose.read(ROOT / "docker-compose.yml", values), ROOT, [profile])
    assert set(mine) == set(theirs)
    for name, service in mine.items():
        node = theirs[name]
        # config writes a dollar sign as $$, so that its output can be read again
        plain = json.loads(json.dumps(node).replace("$$", "$"))
        assert service.command == [*(plain.get("entrypoint") or []), *(plain.get("command") or [])], name
        assert service.environment == (plain.get("environment") or {}), name
        assert service.healthcheck.get("test", []) == plain.get("healthcheck", {}).get("test", []), name
        assert service.depends == {k: v["condition"] for k, v in plain.get("depends_on", {}).items()}, name
        assert service.replicas == plain.get("deploy", {}).get("replicas", 1), name
        assert service.restart == plain.get("restart"), name
        assert [str(p) for p in service.ports] == plain.get("expose", []), name
        assert service.stop_s == compose.seconds(plain.get("stop_grace_period"), 10.0), name
        binds = {v["target"]: v["source"] for v in plain.get("volumes", []) if v["type"] == "bind"}
        files = (
            {
                f"/run/secrets/{s['source']}": compose_config([profile], env)["secrets"][s["source"]]["file"]
                for s in plain.get("secrets", [])
            }
            if name == "redis"
            else {}
        )
        found = {target: str(here) for target, here in service.mounts.items() if here is not None}
        assert binds.items() <= found.items(), name
        assert files.items() <= found.items(), name


def test_the_order_respects_depends_on():
    values = _example_values()
    names = list(compose.services(compose.read(ROOT / "docker-compose.yml", values), ROOT, ["cpu"]))
    for first, then in (("redis", "sandbox"), ("prepare", "ref_server-cpu"), ("ref_server-cpu", "trainer-cpu"),
                        ("sandbox", "trainer-cpu")):  # fmt: skip
        assert names.index(first) < names.index(then)


def _example_values():
    return dict(re.findall(r"^([A-Z_]+)=(.*)$", EXAMPLE, re.M))


# ---------------------------------------------------------------------------------------------- references


def test_every_path_exists(everything):
    made_here = {"runs", ".cache", "models", "data", "report"}  # folders of the user's, made when used
    for name, node in everything["services"].items():
        for volume in node.get("volumes", []):
            if volume["type"] == "bind":
                path = Path(volume["source"]).relative_to(ROOT)
                assert str(path) in made_here or (ROOT / path).exists(), f"{name}: {path}"
        if "build" in node:
            assert (ROOT / node["build"]["dockerfile"]).is_file(), name
            assert Path(node["build"]["context"]) == ROOT
    rules = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text()).get("rule_files", [])
    for pattern in rules:
        assert list((ROOT / "deploy/prometheus").glob(pattern)), pattern


def test_every_secret_is_one_that_is_made(everything, tmp_path):
    from deploy import secrets

    secrets.ensure(tmp_path)
    for name, secret in everything["secrets"].items():
        assert (tmp_path / Path(secret["file"]).name).is_file(), name
    used = {s["source"] for node in everything["services"].values() for s in node.get("secrets", [])}
    assert used == set(everything["secrets"])
    for node in everything["services"].values():
        mounted = {f"/run/secrets/{s['source']}" for s in node.get("secrets", [])}
        assert set(re.findall(r"/run/secrets/\w+", json.dumps(node))) <= mounted | {
            f"/run/secrets/{s['target']}" for s in node.get("secrets", []) if "target" in s
        }


def test_the_example_names_every_variable_and_its_default():
    used = dict(re.findall(r"\$\{([A-Z_]+)(?::-([^}]*))?\}", TEXT))
    shown = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", EXAMPLE, re.M))
    assert set(used) | {"COMPOSE_PROFILES"} == set(shown)
    for name, default in used.items():
        assert shown[name] == default, f"{name}: the file says {default!r}, .env.example {shown[name]!r}"


def test_the_example_chooses_what_exists():
    values = _example_values()
    assert values["PRESET"] in presets.PRESETS
    assert values["ARM"] in arms.ARMS
    assert values["COMPOSE_PROFILES"] in PROFILES


def test_settings_given_on_command_lines_are_fields(everything):
    kinds = {
        "ref_server": settings.RefServerSettings,
        "trainer": settings.TrainerSettings,
        "sandbox": settings.SandboxSettings,
    }
    seen = 0
    for name, node in everything["services"].items():
        kind = kinds.get(name.split("-")[0])
        command = node.get("command") or []
        for flag, text in itertools.pairwise(command):
            if flag == "--set":
                assert text.partition("=")[0] in kind.model_fields, f"{name}: {text}"
                seen += 1
    assert seen >= 14


def test_each_service_listens_where_the_others_look(everything):
    """port= or metrics_port= of the command, `expose`, the healthcheck and Prometheus's target are one number."""
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    targets = {}
    for job in config["scrape_configs"]:
        for block in job.get("static_configs", []):
            targets |= {t.rpartition(":")[0]: t.rpartition(":")[2] for t in block["targets"]}
        for block in job.get("dns_sd_configs", []):
            targets |= {name: str(block["port"]) for name in block["names"]}
    for name, node in everything["services"].items():
        role = name.split("-")[0]
        if role not in ("ref_server", "trainer", "sandbox"):
            continue
        (port,) = node["expose"]
        assert re.search(rf"port={port}\b", " ".join(node["command"])), name
        assert f":{port}/healthz" in node["healthcheck"]["test"][-1], name
        assert targets[role] == port, name
    assert targets["redis_exporter"] == everything["services"]["redis_exporter"]["expose"][0]
    for host in targets:
        known = {alias for n, node in everything["services"].items() for net in node["networks"].values()
                 for alias in [n, *((net or {}).get("aliases", []))]} | {"localhost"}  # fmt: skip
        assert host in known, f"Prometheus scrapes {host}, which no service is called"


def test_prometheus_reaches_what_it_scrapes(everything):
    networks = {n: set(node["networks"]) for n, node in everything["services"].items() if node.get("networks")}
    for name in networks:
        if name.startswith(("ref_server", "trainer", "sandbox", "redis_exporter", "grafana")):
            assert networks[name] & networks["prometheus"], name


def test_commands_are_those_of_this_repository(everything):
    """Each command's parser takes exactly these arguments, in a fresh process from the repository's root."""
    code = (
        "import sys, importlib, json\n"
        "for module, argv in json.load(sys.stdin):\n"
        "    importlib.import_module(module).parser().parse_args(argv)\n"
    )
    parsers = {"services.ref_server": "services.ref_server.__main__", "services.trainer": "services.trainer.__main__",
               "services.sandbox worker": "services.sandbox.worker", "experiments prepare": "experiments.launch.prepare",
               "experiments view": "experiments.viewer.serve", "experiments status": "experiments.status"}  # fmt: skip
    asked = []
    for name, node in everything["services"].items():
        if ours(name) and name != "report":
            after = node["command"][node["command"].index("-m") + 1 :]
            key = after[0] if after[0] in parsers else " ".join(after[:2])
            asked.append([parsers[key], after[len(key.split()) :]])
    assert len(asked) == 10
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(asked), capture_output=True, text=True, cwd=ROOT,
                          env={"PATH": os.environ["PATH"]})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_report_command_is_understood(everything, tmp_path):
    command = everything["services"]["report"]["command"]
    local = [sys.executable, *[part.replace("/app/", f"{tmp_path}/") for part in command[1:]]]
    done = subprocess.run(local, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "runs" in done.stderr and "unrecognized" not in done.stderr, done.stderr


# ---------------------------------------------------------------------------------------------- promises


def test_every_service_is_hardened(everything):
    for name, node in everything["services"].items():
        assert node["read_only"] is True, name
        assert node["cap_drop"] == ["ALL"], name
        assert "cap_add" not in node and not node.get("privileged"), name
        assert node["security_opt"] == ["no-new-privileges:true"], name
        limits = node["deploy"]["resources"]["limits"]
        assert int(limits["pids"]) <= 4096 and limits["memory"] and float(limits["cpus"]), name
        user = node.get("user")
        assert user is None or not user.startswith("0"), name
        if user is None:  # then the image says it
            assert re.search(r"^USER 10001", (ROOT / node["build"]["dockerfile"]).read_text(), re.M), name
        assert node["restart"] in ("no", "unless-stopped", "on-failure:3"), name
        assert "docker.sock" not in json.dumps(node), name


def test_programs_under_test_have_no_way_out(everything):
    sandbox = everything["services"]["sandbox"]
    assert set(sandbox["networks"]) == {"grading"}
    assert everything["networks"]["grading"]["internal"] is True
    assert not sandbox.get("volumes") and not sandbox.get("ports")
    assert [s["source"] for s in sandbox["secrets"]] == ["redis_sandbox"]
    on_grading = {n for n, node in everything["services"].items() if "grading" in (node.get("networks") or {})}
    assert on_grading == {"redis", "sandbox", "prometheus"}
    assert "noexec" in sandbox["tmpfs"][0] and "size=256m" in sandbox["tmpfs"][0]


def test_only_loopback_is_published(everything):
    published = {n: node["ports"] for n, node in everything["services"].items() if node.get("ports")}
    assert set(published) == {"prometheus", "grafana", "viewer"}
    assert all(port["host_ip"] == "127.0.0.1" for ports in published.values() for port in ports)
    grafana = everything["services"]["grafana"]["environment"]
    assert (grafana["GF_AUTH_ANONYMOUS_ENABLED"], grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"]) == ("true", "Viewer")


def test_the_viewer_reads_runs_and_knows_no_secret(everything):
    viewer = everything["services"]["viewer"]
    mounts = {v["target"]: v.get("read_only", False) for v in viewer["volumes"]}
    assert mounts == {"/app/runs": True, "/app/models": True, "/app/.cache": False}
    assert not viewer.get("secrets") and set(viewer["networks"]) == {"edge"}
    assert viewer["command"][viewer["command"].index("--index") + 1].startswith("/app/.cache/")
    (port,) = viewer["expose"]
    assert viewer["command"][-1] == port and f":{port}/healthz" in viewer["healthcheck"]["test"][-1]


def test_no_password_in_the_file(everything):
    for name, node in everything["services"].items():
        for key, value in (node.get("environment") or {}).items():
            if re.search("PASSWORD|TOKEN|SECRET", key):
                assert str(value).startswith("/run/secrets/"), f"{name}: {key}"
        assert not re.search(r"redis://[^/\s]*@", json.dumps(node)), name


def test_two_services_on_one_card_leave_room(everything):
    """vLLM's share, the trainer's cap and, at bf16, the 4B reference model on a 24 GB card fit."""
    shares = [
        float(re.search(rf"{field}=([\d.]+)", " ".join(everything["services"][name]["command"]))[1])
        for name, field in (
            ("ref_server-one-gpu", "gpu_memory_utilization"),
            ("trainer-one-gpu", "gpu_memory_fraction"),
        )
    ]
    assert sum(shares) <= 0.9
    cards = {
        json.dumps(everything["services"][n]["deploy"]["resources"]["reservations"]["devices"])
        for n in ("ref_server-one-gpu", "trainer-one-gpu")
    }
    assert len(cards) == 1


def test_images_are_pinned(everything):
    for name, node in everything["services"].items():
        assert re.search(r":v?\d+\.\d+\.\d+", node["image"]), f"{name}: {node['image']}"
