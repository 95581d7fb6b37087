"""A service of docker-compose.yml as plain processes of this machine. Pure: what to run, not running it.

What changes on the way from containers to processes, and nothing else does:

    service names in addresses     127.0.0.1
    0.0.0.0 in a command           127.0.0.1 (nothing is published that Docker would not publish)
    paths of mounts and secrets    where they lie here; named volumes and scratches under the state folder
    /app                           the repository, which is also the working directory
    port P of replica i            P + i
    python, torchrun, redis-server, prometheus, redis_exporter    the ones installed here
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.errors import ConfigError
from deploy.compose import Service
from experiments.launch.stack import redis_server

WORKDIR = "/app"
ENTRYPOINTS = {
    "/bin/prometheus": ("prometheus",),
    "/redis_exporter": ("prometheus-redis-exporter", "redis_exporter"),
}
"""What third-party images start, and the names under which distributions install it."""
WITHOUT_DOCKER = {"grafana": "give a Grafana of yours deploy/grafana/provisioning and deploy/grafana/dashboards"}


@dataclass(frozen=True)
class Program:
    """One process. `health` is a command, empty when the service has no check."""

    name: str
    service: str
    command: list[str]
    environment: dict[str, str]
    health: list[str]
    ports: list[int]


@dataclass(frozen=True)
class Places:
    """root: the repository. state: what the processes write besides runs. logs: one file a program."""

    root: Path
    state: Path

    @property
    def logs(self) -> Path:
        return self.state / "logs"


def plan(services: Mapping[str, Service], places: Places) -> tuple[dict[str, list[Program]], dict[str, str]]:
    """(service -> its programs in starting order, service that is left out -> why)."""
    programs: dict[str, list[Program]] = {}
    left_out: dict[str, str] = {}
    names = {alias for service in services.values() for alias in service.aliases}
    for service in services.values():
        why = WITHOUT_DOCKER.get(service.name) or _missing(service)
        if why:
            left_out[service.name] = why
        else:
            programs[service.name] = [_program(service, i, names, places) for i in range(service.replicas)]
    return programs, left_out


def folders(service: Service, places: Places) -> dict[str, Path]:
    """Path in the container -> path here. The longest match wins when one lies in another."""
    found = {WORKDIR: places.root}
    for target, here in service.mounts.items():
        found[target] = here or places.state / "volumes" / service.name / target.strip("/").replace("/", "-")
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def localise_prometheus(
    config: Mapping[str, Any], rules: Path, programs: Mapping[str, list[Program]], services: Mapping[str, Service]
) -> dict[str, Any]:
    """A prometheus.yml for these processes: service names and DNS lookups become addresses, one a replica.

    rules  folder that relative rule_files are relative to. Targets of services that do not run here are dropped, and a
           service's port is the one it has here.
    """
    by_alias = {alias: service.name for service in services.values() for alias in service.aliases}

    def addresses(host: str, port: int) -> list[str]:
        if host in ("localhost", "127.0.0.1"):
            return [f"127.0.0.1:{port}"]
        if host not in by_alias:
            raise ConfigError(
                f"deploy/prometheus/prometheus.yml: target {host}:{port} is no service of docker-compose.yml"
            )
        return [f"127.0.0.1:{program.ports[0]}" for program in programs.get(by_alias[host], [])]

    jobs = []
    for job in config.get("scrape_configs", []):
        rest = {
            key: value
            for key, value in job.items()
            if not key.endswith("_configs") or key == "metric_relabel_configs" or key == "relabel_configs"
        }
        found = [a for block in job.get("static_configs", []) for t in block["targets"] for a in addresses(*_split(t))]
        for block in job.get("dns_sd_configs", []):
            found += [a for host in block["names"] for a in addresses(host, int(block["port"]))]
        jobs.append(rest | {"static_configs": [{"targets": found}]})
    paths = [str((rules / path).resolve()) for path in config.get("rule_files", [])]
    return {**config, "rule_files": paths, "scrape_configs": jobs}


def render_prometheus(source: Path, programs: Mapping[str, list[Program]], services: Mapping[str, Service]) -> str:
    config = yaml.safe_load(source.read_text())
    return yaml.safe_dump(localise_prometheus(config, source.parent, programs, services), sort_keys=False)


def _split(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    return host, int(port)


def _missing(service: Service) -> str:
    first = service.command[0] if service.command else ""
    names = ENTRYPOINTS.get(first, ())
    return f"not installed here ({' or '.join(names)})" if names and not any(map(shutil.which, names)) else ""


def _program(service: Service, replica: int, names: set[str], places: Places) -> Program:
    here = folders(service, places)

    def local(text: str) -> str:
        return _ports(_hosts(_paths(text, here), names), service.ports, replica)

    command = [local(part) for part in service.command]
    environment = {k: local(v) for k, v in service.environment.items() if k != "HOME"}  # our caches are where they are
    name = f"{service.name}-{replica}" if service.replicas > 1 else service.name
    health = _health(service, local)
    return Program(
        name,
        service.name,
        [_executable(command[0]), *command[1:]],
        environment,
        health,
        [port + replica for port in service.ports],
    )


def _health(service: Service, local: Callable[[str], str]) -> list[str]:
    test = service.healthcheck.get("test", [])
    if not test or test[0] == "NONE":
        return []
    if test[0] == "CMD-SHELL":
        return ["/bin/sh", "-c", local(test[1])]
    if test[1] == "wget":  # the one that images of others carry; ours asks the same
        return [sys.executable, "-m", "common.healthcheck", local(test[-1])]
    return [_executable(test[1]), *map(local, test[2:])]


def _executable(name: str) -> str:
    if name == "python":
        return sys.executable
    if name == "redis-server":
        return redis_server(at_least=(7, 0))  # whose list of users deploy/secrets.py writes
    beside = Path(sys.executable).parent / name
    found = (
        str(beside) if beside.is_file() else next(filter(None, map(shutil.which, ENTRYPOINTS.get(name, (name,)))), None)
    )
    if found is None:
        raise ConfigError(f"docker-compose.yml starts {name}, which is not installed here")
    return found


def _paths(text: str, folders: Mapping[str, Path]) -> str:
    """Every whole path of a container in `text` as a path of this machine; each place is replaced once."""
    pattern = "|".join(re.escape(target) for target in folders)
    return re.sub(rf"(?<![\w./-])({pattern})(?=$|[/\s\"'):])", lambda m: str(folders[m[1]]), text)


def _hosts(text: str, names: set[str]) -> str:
    """HOST:PORT with a service's name as host, and 0.0.0.0, become 127.0.0.1."""
    pattern = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    return re.sub(rf"(?<![\w.-])(?:{pattern})(?=:\d)", "127.0.0.1", text).replace("0.0.0.0", "127.0.0.1")


def _ports(text: str, own: list[int], replica: int) -> str:
    for port in own if replica else []:
        text = re.sub(rf"(?<=[:=]){port}\b", str(port + replica), text)
    return text
