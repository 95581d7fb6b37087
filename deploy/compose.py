"""Reading docker-compose.yml: interpolation, profiles, and the order that depends_on asks for. Pure but for the reads.

Understands what this project's file uses, and refuses the rest by name: ${NAME}, ${NAME:-default} and $$; profiles;
short volume, tmpfs and secret syntax. A test compares every answer with `docker compose config`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

from common.errors import ConfigError

_VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\})")


@dataclass(frozen=True)
class Service:
    """One service of the file, interpolated. `depends` maps a service to its condition."""

    name: str
    command: list[str]
    environment: dict[str, str]
    mounts: dict[str, Path | None]
    """Path in the container -> path here; None for a scratch in memory and for a named volume."""
    ports: list[int]
    aliases: list[str]
    depends: dict[str, str]
    healthcheck: dict[str, Any]
    restart: str
    replicas: int
    stop_s: float
    profiles: list[str] = field(default_factory=list)


def environment(root: Path, outer: Mapping[str, str]) -> dict[str, str]:
    """What the file is interpolated with: .env (else .env.example), and `outer` over it, as docker compose does."""
    path = root / ".env"
    values = dotenv_values(path if path.exists() else root / ".env.example", interpolate=False)
    return {**{k: v or "" for k, v in values.items()}, **outer}


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """${NAME}, ${NAME:-default} and $$. ConfigError for a variable without value and default, or any other form."""

    def one(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        found = values.get(match["name"], "")
        if found or match["default"] is not None:
            return found or match["default"]
        raise ConfigError(
            f"docker-compose.yml: variable {match['name']} has neither a value nor a default; set it in .env"
        )

    left = _VARIABLE.sub("", text)
    if "$" in left:
        raise ConfigError(
            f"docker-compose.yml: cannot read {text!r}; write ${{NAME:-default}}, or $$ for a dollar sign"
        )
    return _VARIABLE.sub(one, text)


def read(path: Path, values: Mapping[str, str]) -> dict[str, Any]:
    """The file as a mapping, anchors merged, every string interpolated."""
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list):
            return [walk(value) for value in node]
        return interpolate(node, values) if isinstance(node, str) else node

    return {key: walk(value) for key, value in document.items() if not key.startswith("x-")}


def services(document: Mapping[str, Any], root: Path, profiles: Iterable[str]) -> dict[str, Service]:
    """The services that these profiles start, in an order in which each comes after those it depends on."""
    wanted = set(profiles)
    chosen = {
        name: _service(name, node, document, root)
        for name, node in document["services"].items()
        if not node.get("profiles") or wanted & set(node["profiles"])
    }
    for service in chosen.values():
        for other in service.depends:
            if other not in chosen:
                raise ConfigError(
                    f"service {service.name} depends on {other}, which profile {sorted(wanted)} does not start"
                )
    try:
        order = TopologicalSorter({s.name: s.depends.keys() for s in chosen.values()}).static_order()
        return {name: chosen[name] for name in order}
    except CycleError as error:
        raise ConfigError(f"docker-compose.yml: services depend on each other in a circle: {error.args[1]}") from None


def known_profiles(document: Mapping[str, Any]) -> set[str]:
    return {profile for node in document["services"].values() for profile in node.get("profiles", [])}


def seconds(text: str | None, default: float) -> float:
    """'1m30s' -> 90.0."""
    if text is None:
        return default
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    parts = re.findall(r"([\d.]+)(ms|s|m|h)", text)
    if "".join(a + b for a, b in parts) != text:
        raise ConfigError(f"docker-compose.yml: {text!r} is no duration; write e.g. 90s or 1m30s")
    return sum(float(number) * units[unit] for number, unit in parts)


def _service(name: str, node: Mapping[str, Any], document: Mapping[str, Any], root: Path) -> Service:
    networks = node.get("networks") or {}
    aliases = [a for n in networks.values() for a in (n or {}).get("aliases", [])] if isinstance(networks, dict) else []
    return Service(
        name=name,
        command=[str(part) for part in [*node.get("entrypoint", []), *node.get("command", [])]],
        environment={key: str(value) for key, value in node.get("environment", {}).items()},
        mounts=_mounts(node, document, root),
        ports=[int(port) for port in node.get("expose", [])],
        aliases=[name, *aliases],
        depends={other: how["condition"] for other, how in node.get("depends_on", {}).items()},
        healthcheck=dict(node.get("healthcheck", {})),
        restart=str(node.get("restart", "no")),
        replicas=int(node.get("deploy", {}).get("replicas", 1)),
        stop_s=seconds(node.get("stop_grace_period"), 10.0),
        profiles=list(node.get("profiles", [])),
    )


def _mounts(node: Mapping[str, Any], document: Mapping[str, Any], root: Path) -> dict[str, Path | None]:
    mounts: dict[str, Path | None] = {}
    for text in node.get("volumes", []):
        source, target = text.split(":")[:2]
        mounts[target] = None if source in document.get("volumes", {}) else (root / source).resolve()
    for text in node.get("tmpfs", []):
        mounts[text.split(":")[0]] = None
    for secret in node.get("secrets", []):
        mounts[f"/run/secrets/{secret}"] = (root / document["secrets"][secret]["file"]).resolve()
    return mounts
