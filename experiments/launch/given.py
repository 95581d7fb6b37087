"""From the options of a command to plans, and what a run directory says of its plan: run.yaml, and what may not change.

Settings, weakest first: preset < --config FILE < --set; --preset, --arm, --seed and --name come before the file's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.errors import ConfigError
from common.settings import OF_RESULTS, changed, parse_assignments, read_settings_file
from common.writable import require_directory
from experiments.design.plan import HEAD, Plan, flatten, plain, plan
from experiments.design.presets import NAMED

FILE = "run.yaml"
_BETWEEN = re.compile(r",(?![^\[{]*[\]}])")  # a comma that stands in no [list] or {mapping}
# Of the generator's settings, those that change what is computed.
DECIDING = ("dtype", "max_model_len", "chat_template_kwargs")


@dataclass(frozen=True)
class Given:
    """What options and file say together; None where neither does."""

    preset: str
    arm: str | None
    seed: int | None
    name: str | None
    assignments: dict[str, Any]

    def plan(self, arm: str, seed: int, args: argparse.Namespace, origin: str) -> Plan:
        return plan(
            self.preset, arm, seed, self.assignments, args.runs, self.name, getattr(args, "redis_url", None), origin
        )


def given(args: argparse.Namespace, more: Sequence[str] = ()) -> Given:
    """Read --config, --set and the options of a run; `more` are further assignments, weaker than --set."""
    require_directory(args.runs, "--runs")
    file = read_settings_file(args.config) if args.config else {}
    head = {key: file.pop(key) for key in HEAD if key in file}
    for key in NAMED & file.keys():
        raise ConfigError(
            f"settings file {args.config}: field '{key}' is decided by preset, arm, seed and name; leave it out"
        )
    for key in HEAD:
        asked = getattr(args, key, None)
        head[key] = head.get(key) if asked is None else asked
    if head["seed"] is not None and (isinstance(head["seed"], bool) or not isinstance(head["seed"], int)):
        raise ConfigError(f"settings file {args.config}: field 'seed' must be a whole number (got {head['seed']!r})")
    for key in ("preset", "arm", "name"):
        if head[key] is not None and not isinstance(head[key], str):
            raise ConfigError(f"settings file {args.config}: field '{key}' must be a name (got {head[key]!r})")
    assignments = flatten(file) | _assigned(more) | _assigned(args.set)
    return Given(head["preset"] or "demo", head["arm"], head["seed"], head["name"], assignments)


def _assigned(options: Sequence[str]) -> dict[str, Any]:
    """Assignments by the one name of each field. ConfigError for a field that is given two values."""
    found: dict[str, Any] = {}
    for option in options:
        ((name, value),) = parse_assignments([plain(option)]).items()
        if name in found and found[name] != value:
            raise ConfigError(f"--set {name}: given twice, {found[name]!r} and {value!r}; give it once")
        found[name] = value
    return found


def grid(said: Given, options: Sequence[str]) -> Iterator[Given]:
    """`said` once for each combination of the --grid options' values, under a name that says the values."""
    axes: list[tuple[str, list[str]]] = []
    for option in options:
        field, sign, text = plain(option).partition("=")
        values = _BETWEEN.split(text)
        if not sign or not field or not all(values):
            raise ConfigError(f"--grid {option!r}: write field=value,value")
        read = [parse_assignments([f"{field}={value}"])[field] for value in values]
        if any(value in read[:i] for i, value in enumerate(read)):
            raise ConfigError(f"--grid {option!r}: names a value twice")
        if field in said.assignments or field in [axis for axis, _ in axes]:
            raise ConfigError(f"--grid {option!r}: field '{field}' is given elsewhere too; give it once")
        axes.append((field, values))
    names: set[str] = set()
    for chosen in itertools.product(*(values for _, values in axes)):
        cell = [(field, value) for (field, _), value in zip(axes, chosen, strict=True)]
        suffix = [field.rpartition(".")[2] + re.sub(r"[^A-Za-z0-9.-]+", "_", value) for field, value in cell]
        name = "-".join([said.name or said.preset, *suffix]) if axes else said.name
        if name in names:
            raise ConfigError(
                f"--grid: two combinations would both be called {name}; make them sweeps with --name each"
            )
        names.add(str(name))
        added = parse_assignments([f"{field}={value}" for field, value in cell])
        yield Given(said.preset, said.arm, said.seed, name, said.assignments | added)


def check_same(planned: Plan, finished: bool) -> None:
    """ConfigError, with field and both values, when the run directory holds a run of other settings."""
    s = planned.trainer
    old = _json(s.run_dir / "config.json")
    if old is None:
        return
    difference = changed(old, json.loads(s.model_dump_json()), finished)
    difference = difference or generator_changed(_yaml(s.run_dir / FILE) or {}, planned)
    if difference is not None:
        field, was, now = difference
        more = " (it is finished: to go on is another run)" if finished and field in OF_RESULTS else ""
        raise ConfigError(
            f"{s.run_dir} holds a run with {field}={was!r}, now {now!r}{more}; give the same settings (run.yaml in it), or "
            "another --name for another run"
        )


def generator_changed(file: Mapping[str, Any], planned: Plan) -> tuple[str, Any, Any] | None:
    """Field, value then and now of the first deciding setting of the generator that differs. `file`: what a run.yaml says."""
    before = file.get("generator", {})
    for field in DECIDING:
        if field in before and before[field] != planned.server.get(field):
            return f"generator.{field}", before[field], planned.server.get(field)
    return None


def save(planned: Plan) -> None:
    """run.yaml, before the run starts."""
    planned.trainer.run_dir.mkdir(parents=True, exist_ok=True)
    (planned.trainer.run_dir / FILE).write_text(text(planned.file()), encoding="utf-8")


def text(values: dict[str, Any]) -> str:
    """As YAML that `read_settings_file` reads back: no aliases."""
    return yaml.safe_dump(json.loads(json.dumps(values, default=str)), sort_keys=False, width=200)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise ConfigError(
            f"{path}: not JSON; this run cannot be compared: move its folder away or give --name"
        ) from None
    return found if isinstance(found, dict) else None


def _yaml(path: Path) -> dict[str, Any] | None:
    return read_settings_file(path) if path.is_file() else None
