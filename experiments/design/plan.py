"""One run as planned: every setting of trainer, generator and graders from preset, arm, seed and one namespace of assignments.

    lr=1e-3                       a field of TrainerSettings (`trainer.lr=1e-3` says the same)
    generator.max_num_seqs=64     a field of RefServerSettings
    sandbox.parallel=4            a field of SandboxSettings; sandbox.workers=N: how many graders

Fields that trainer and generator share (dtype, device, svd_cache, ...) are given once and reach both, unless the generator
has a value of its own. The generator's max_model_len keeps the room that the preset leaves to prompts: it grows and
shrinks with max_tokens, unless it is given. Everything here is pure but for reading the model's config.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.model_names import parse
from common.settings import RedisSettings, RefServerSettings, SandboxSettings, TrainerSettings, build
from experiments.design import arms, presets
from rankspace.chat import Chat
from rankspace.errors import RankspaceError
from tasks import modes

HEAD = ("preset", "arm", "seed", "name")  # of a run's file, beside the settings
SECTIONS: dict[str, type[RedisSettings]] = {
    "trainer": TrainerSettings, "generator": RefServerSettings, "sandbox": SandboxSettings
}  # fmt: skip
_MACHINE = frozenset(RedisSettings.model_fields) | {"host", "port"}
# What the command that starts a service gives it.
STARTED_WITH = {
    "generator": _MACHINE | {"model", "replica", "admin_token_file"},
    "sandbox": _MACHINE | {"name", "isolation"},
}
SHARED = frozenset(TrainerSettings.model_fields) & frozenset(RefServerSettings.model_fields) - _MACHINE - {"model"}
_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Plan:
    """One run. server, sandbox: values of RefServerSettings and SandboxSettings, less what is given at their start."""

    preset: str
    name: str
    trainer: TrainerSettings
    server: dict[str, Any]
    sandbox: dict[str, Any]
    graders: int
    chosen: dict[str, Any]

    @property
    def services(self) -> tuple[str, str]:
        """Equal for runs that the same services can serve."""
        return self.trainer.model, json.dumps([self.server, self.sandbox, self.graders], sort_keys=True, default=str)

    def file(self) -> dict[str, Any]:
        """What run.yaml says: given back with --config it plans this run again."""
        head = {"preset": self.preset, "arm": self.trainer.arm, "seed": self.trainer.seed}
        head |= {} if self.name == self.preset else {"name": self.name}
        sandbox = {**self.sandbox, "workers": self.graders}
        return {**head, **self.chosen, "generator": dict(self.server), "sandbox": sandbox}


def plan(
    preset: str, arm: str, seed: int, assignments: Mapping[str, Any] | None = None, runs: Path = Path("runs"),
    name: str | None = None, redis_url: str | None = None, origin: str = "run",
) -> Plan:  # fmt: skip
    """The plan of one run. ConfigError, one line, for what is unknown, not free, of the wrong type or cannot fit."""
    if name is not None and not _NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r}: use letters, digits, '.', '_' and '-'")
    found, variant = presets.get(preset), arms.get(arm)
    parts = split(assignments or {})
    values = presets.resolve(preset, arm, seed, parts["trainer"], runs, redis_url=redis_url, name=name)
    trainer = build(TrainerSettings, values, origin)
    modes.chosen(trainer.eval_modes, trainer.loophole)
    graders = parts["sandbox"].pop("workers", found.graders)
    if isinstance(graders, bool) or not isinstance(graders, int) or graders < 1:
        raise ConfigError(f"--set sandbox.workers: a whole number of graders, at least 1 (got {graders!r})")
    server = _server(found, trainer, parts)
    build(RefServerSettings, {**server, "model": trainer.model}, f"{origin}: generator")
    build(SandboxSettings, parts["sandbox"], f"{origin}: sandbox")
    _check_chat(trainer, server)
    _check_lengths(trainer, server)
    chosen = {**found.values, **parts["trainer"]}
    chosen = {k: v for k, v in chosen.items() if k not in variant.overrides}
    return Plan(preset, name or preset, trainer, server, parts["sandbox"], graders, chosen)


def split(assignments: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{"lr": 1, "generator.port": 2} -> {"trainer": {"lr": 1}, "generator": {"port": 2}, "sandbox": {}}.

    ConfigError for an unknown section or field, and for a field that is not the user's to give.
    """
    parts: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for full, value in assignments.items():
        section, dot, field = full.rpartition(".")
        if dot and section not in SECTIONS:
            raise ConfigError(f"--set {full}: unknown part '{section}'; parts: {', '.join(SECTIONS)}")
        section = section or "trainer"
        _check_field(full, section, field)
        parts[section][field] = value
    return parts


def _check_field(full: str, section: str, field: str) -> None:
    known = set(SECTIONS[section].model_fields) | ({"workers"} if section == "sandbox" else set())
    if field not in known:
        others = [
            f"{s}.{field}" for s in ("generator", "sandbox") if s != section and field in SECTIONS[s].model_fields
        ]
        hint = f"did you mean {' or '.join(others)}? " if others else ""
        raise ConfigError(f"--set {full}: unknown field '{field}'; {hint}known fields: {', '.join(sorted(known))}")
    if field in STARTED_WITH.get(section, ()):
        how = {"model": "write model=FOLDER", "isolation": "use --isolation"}.get(field, "leave it out")
        raise ConfigError(f"--set {full}: the command that starts the service gives it; {how}")


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"lr": 1, "generator": {"port": 2}} -> {"lr": 1, "generator.port": 2}; fields of `trainer` stand alone."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if name in SECTIONS:
            if not isinstance(value, Mapping):
                raise ConfigError(f"field '{name}' of the settings file must hold a mapping of field to value")
            inner = {plain(f"{name}.{field}"): one for field, one in value.items()}
        else:
            inner = {plain(str(name)): value}
        if both := sorted(flat.keys() & inner.keys()):
            raise ConfigError(f"field '{both[0]}' is given twice in the settings file; give it once")
        flat |= inner
    return flat


def plain(field: str) -> str:
    """The one name of an assignment's field: `trainer.lr` is `lr`."""
    return field.removeprefix("trainer.")


def _server(preset: presets.Preset, trainer: TrainerSettings, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """RefServerSettings values: the preset's, what is shared with the trainer, the length that follows, the user's own."""
    server, own = dict(preset.server), parts["generator"]
    given = {name for name in parts["trainer"] if name in SHARED}
    follows = given | {name for name in preset.values if name in SHARED and name not in server}
    server |= {name: trainer.model_dump(mode="json")[name] for name in follows}
    length = server.get("max_model_len", RefServerSettings.model_fields["max_model_len"].default)
    planned = preset.values.get("max_tokens", TrainerSettings.model_fields["max_tokens"].default)
    return server | {"max_model_len": length - planned + trainer.max_tokens} | own


def _check_chat(trainer: TrainerSettings, server: Mapping[str, Any]) -> None:
    """Generator and trainer (whose pairs make the direction) fill the chat template in alike."""
    try:
        Chat(trainer.chat_template_kwargs, trainer.chat_date)
    except RankspaceError as error:
        raise ConfigError(str(error)) from None
    for name in ("chat_template_kwargs", "chat_date"):
        ours = getattr(trainer, name)
        if server.get(name, RefServerSettings.model_fields[name].get_default(call_default_factory=True)) != ours:
            raise ConfigError(
                f"generator.{name}={server.get(name)!r} differs from {name}={ours!r}: prompts and pairs must be rendered alike; "
                f"give --set {name}=... alone"
            )


def _check_lengths(trainer: TrainerSettings, server: Mapping[str, Any]) -> None:
    """What cannot fit is refused before anything is started."""
    length = server["max_model_len"]
    if trainer.max_tokens >= length:
        raise ConfigError(
            f"max_tokens={trainer.max_tokens} leaves no room for a prompt in generator.max_model_len={length}; lower "
            "max_tokens, or give generator.max_model_len more"
        )
    limit = context_limit(parse(trainer.model).folder)
    if limit is not None and length > limit:
        raise ConfigError(
            f"generator.max_model_len={length} (prompts and max_tokens={trainer.max_tokens}) is beyond the {limit} positions "
            f"of model {trainer.model}; lower max_tokens, or give --set generator.max_model_len={limit}"
        )


def context_limit(model: Path) -> int | None:
    """Positions that a model folder's config.json knows; None without a folder, or where RoPE scaling stretches them."""
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    text = config.get("text_config") or config
    limit = text.get("max_position_embeddings")
    return int(limit) if isinstance(limit, int) and not text.get("rope_scaling") else None
