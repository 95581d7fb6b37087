"""python -m deploy COMMAND: the services of docker-compose.yml as plain processes, without Docker.

  up        start them in order, each when what it depends on is healthy; returns when all run. Given again, it starts
            what has ended, and anew what .env has changed
  down      stop them in reverse order; returns when no process is left
  ps        a line for every process; EXITED (0): with this exit code
  secrets   make the secret files that are missing (Docker needs them too)

Reads .env (else .env.example); a variable of the shell goes first, e.g. `SANDBOX_REPLICAS=4 python -m deploy up`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from common import cli
from common.errors import ConfigError

if TYPE_CHECKING:
    from deploy.compose import Service
    from deploy.processes import Places, Program

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docker-compose.yml"


def _values() -> dict[str, str]:
    from deploy.compose import environment

    return environment(ROOT, os.environ)


def _places(values: dict[str, str]) -> Places:
    from deploy.processes import Places

    return Places(ROOT, (ROOT / values.get("STACK_DIR", ".stack")).resolve())


def _selected(values: dict[str, str]) -> list[str]:
    """COMPOSE_PROFILES as a list, checked against the file."""
    from deploy import compose

    document = compose.read(FILE, values)
    profiles = [p.strip() for p in values.get("COMPOSE_PROFILES", "").split(",") if p.strip()]
    known = compose.known_profiles(document)
    for profile in profiles:
        if profile not in known:
            raise ConfigError(f"COMPOSE_PROFILES: unknown profile {profile!r}; profiles: {', '.join(sorted(known))}")
    return profiles


def up(values: dict[str, str]) -> int:
    from deploy import compose, processes, secrets, supervise

    services = compose.services(compose.read(FILE, values), ROOT, _selected(values))
    places = _places(values)
    folder = (ROOT / values.get("SECRETS_DIR", "secrets")).resolve()
    port = services["redis"].ports[0]
    if new := secrets.ensure(folder, (f"redis:{port}", f"127.0.0.1:{port}")):
        print(f"made {len(new)} secrets in {folder}")
    programs, left_out = processes.plan(services, places)
    supervisor = supervise.Supervisor(places)
    first = supervisor.pid() is None
    if first:
        supervise.require_free(programs)
    _folders(services, programs, places)
    for group in programs.values():
        _localise(group, programs, services, places)
    supervisor.start(supervise.render(services, programs, places))
    for name, why in left_out.items():
        print(f"  {name}: left out, {why}")
    try:
        for name, group in programs.items():
            supervisor.launch(services[name], group)
    except BaseException:
        if first:  # what ran before this command goes on
            supervisor.stop()
        raise
    print(f"up. logs: {places.logs}   stop: make down   state: make ps")
    return 0


def _folders(services: Mapping[str, Service], programs: Mapping[str, list[Program]], places: Places) -> None:
    """Make what would be a named volume or a scratch, and the folder for logs."""
    from deploy.processes import folders

    for name in programs:
        here = folders(services[name], places)
        for target, bound in services[name].mounts.items():
            if bound is None:
                here[target].mkdir(parents=True, exist_ok=True)
    places.logs.mkdir(parents=True, exist_ok=True)


def _localise(
    group: list[Program], programs: Mapping[str, list[Program]], services: Mapping[str, Service], places: Places
) -> None:
    """Prometheus is the one service whose own file names the others."""
    from deploy.processes import render_prometheus

    flag = "--config.file="
    for program in group:
        for i, part in enumerate(program.command):
            if program.service == "prometheus" and part.startswith(flag):
                path = places.state / "prometheus.yml"
                path.write_text(render_prometheus(Path(part.removeprefix(flag)), programs, services))
                program.command[i] = f"{flag}{path}"


def down(values: dict[str, str]) -> int:
    from deploy import supervise

    places = _places(values)
    supervisor = supervise.Supervisor(places)
    if supervisor.pid() is None:
        print("nothing is up")
    stopped = supervisor.stop()
    if stopped:
        print(f"stopped: {', '.join(stopped)}")
    if left := supervise.orphans(places):
        raise ConfigError(f"{len(left)} processes outlived their supervisor; end them by hand: {'; '.join(left)}")
    return 0


def ps(values: dict[str, str]) -> int:
    from deploy import supervise

    supervisor = supervise.Supervisor(_places(values))
    if supervisor.pid() is None:
        print("nothing is up")
        return 0
    for state in supervisor.states():
        since = datetime.fromtimestamp(state["start"], UTC).isoformat(timespec="seconds") if state["start"] else ""
        ended = f" ({state['exitstatus']})" if state["statename"] == "EXITED" else ""
        print(f"{state['name']:<20} {state['statename'] + ended:<11} {state['pid'] or '':<8} {since}")
    return 0


def make_secrets(values: dict[str, str]) -> int:
    from deploy import secrets

    folder = (ROOT / values.get("SECRETS_DIR", "secrets")).resolve()
    port = values.get("REDIS_PORT") or "6379"
    new = secrets.ensure(folder, (f"redis:{port}", f"127.0.0.1:{port}"))
    print(f"{folder}: {', '.join(new) if new else 'complete'}")
    return 0


COMMANDS = {"up": up, "down": down, "ps": ps, "secrets": make_secrets}


def main(argv: list[str]) -> int:
    if cli.COMPLETING in os.environ:
        cli.answer_shell(cli.tree("python -m deploy", dict.fromkeys(COMMANDS, "")))
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0 if argv else cli.EXIT_USER_ERROR
    if argv[0] not in COMMANDS or len(argv) > 1:
        return cli.fail(f"unknown command '{' '.join(argv)}'; commands: {', '.join(COMMANDS)}")
    return cli.run(lambda: COMMANDS[argv[0]](_values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
