"""One settings class per process, passed whole. Unknown fields are refused; the resolved form is saved with the run.

A settings file is JSON or YAML; the command line sets single fields with `--set field=value` (value read as YAML).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl, urlsplit

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from common.errors import ConfigError
from common.scopes import Bookkeeping, Input, Machine, Name, Place, Science, Scope, Settings, fields

DEFAULT_REDIS = "redis://127.0.0.1:6379/0"
SETTINGS_CHARACTERS, SETTINGS_DEPTH = 1 << 20, 32


def _environment(name: str, default: str | None = None) -> Any:
    """A field that an unset value takes from the environment, as deployments give it."""
    return Field(default_factory=lambda: os.environ.get(name) or default, validate_default=True)


class RedisSettings(Settings):
    """Where Redis is and who we are there (environment: REDIS_URL, REDIS_USERNAME, REDIS_PASSWORD_FILE).

    The password is in the file that redis_password_file names, alone on one line; nowhere else.
    """

    redis_url: Place[str] = _environment("REDIS_URL", DEFAULT_REDIS)
    redis_username: Place[str | None] = _environment("REDIS_USERNAME")
    redis_password_file: Place[Path | None] = _environment("REDIS_PASSWORD_FILE")

    @model_validator(mode="after")
    def _no_password_in_the_address(self) -> RedisSettings:
        if "@" in self.redis_url or "password=" in self.redis_url:
            raise ValueError(
                "field 'redis_url' must hold no user or password (settings are saved and shown); give redis_username and "
                "redis_password_file"
            )
        _check_options(self.redis_url)
        if self.redis_username is not None and self.redis_password_file is None:
            raise ValueError("redis_username needs redis_password_file: the file that holds that user's password")
        return self


def _check_options(url: str) -> None:
    """Only options that concern the way there: others change what redis-py answers, and nothing here reads that."""
    names = {name for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)}
    for name in sorted(names):
        if name != "db" and not name.startswith("ssl_"):
            raise ValueError(f"field 'redis_url': option '{name}' is not understood here; write redis://HOST:PORT/DB")


_Share = Annotated[float, Field(ge=0, lt=1)]
Projection = Literal[
    "off", "measure_only", "one_sided", "no_rescale", "two_sided", "drift_only", "subspace", "update", "bias", "leash",
    "setpoint", "shift", "span", "m_only", "moments", "fisher",
]  # fmt: skip
Mechanism = Literal["own_tests", "sentinel", "stdout_marker", "result_file"]
RewardShaping = Literal[
    "none", "rebound", "rebound_multiplicative", "rebound_z", "rebound_published", "rebound_published_mult",
    "ground_truth_penalty", "ground_truth_screening",
]  # fmt: skip


class TrainerSettings(RedisSettings):
    """One training run. Rates are per optimizer step, sizes in rollouts or tokens, seconds are seconds."""

    # what runs
    run_id: Name[str] = Field(pattern=r"^[A-Za-z0-9._-]+$")
    run_dir: Name[Path]
    arm: Name[str] = "vanilla"
    seed: Name[int] = Field(0, ge=0)

    # model and data
    model: Science[str]
    train_problems: Science[Path]
    heldout_problems: Science[Path]
    loophole: Science[str | None] = "simple_overwrite_tests"
    chat_template_kwargs: Science[dict[str, Any]] = Field(default_factory=dict)  # {enable_thinking: false}
    chat_date: Science[str] = Field("2024-07-26", pattern=r"^\d{4}-\d\d-\d\d$")  # what a template that asks is told
    svd_cache: Input[Path] = Path(".cache/svd")
    dtype: Science[Literal["float32", "bfloat16"]] = "float32"
    device: Machine[str] = "auto"
    gpu_memory_fraction: Machine[float | None] = Field(None, gt=0, le=1)

    # the method
    adapter: Science[Literal["antipasto", "pissa_freeze_a"]] = "antipasto"
    adapter_form: Science[Literal["merged", "factored"]] = "merged"
    projection: Science[Projection] = "off"
    direction: Science[Literal["v_hack", "random", "none"]] = "none"
    v_hack: Input[Path | None] = None
    # v_hack that positions are measured against; default: the file v_hack, if of that kind
    v_ref: Input[Path | None] = None
    orthogonal: Science[bool] = False  # the direction acted on is made orthogonal to the reference, module by module
    dose: Science[float] = Field(0.0, ge=0)  # leash, setpoint, shift: component along v per module, in units of delta_S
    dose_ramp: Science[int] = Field(1, ge=1)  # setpoint: steps until the dose is reached
    start_from: Science[Path | None] = None  # run directory: its newest delta_S is added to the start
    dpo_beta: Science[float] = Field(0.0, ge=0)  # weight of the contrastive loss on the pairs (rankspace/dpo.py)
    dpo_gamma: Science[float] = Field(0.1, gt=0)
    dpo_pairs: Science[int] = Field(8, ge=1)  # pairs a step
    bias_strength: Science[float] = Field(0.1, gt=0, lt=1)  # bias: share of a module's gradient norm
    project_until: Science[int | None] = Field(None, ge=1)  # intervene in steps before this one
    # intervene once the 5-step mean strict hack rate is as high
    project_from: Science[float | None] = Field(None, gt=0, le=1)
    # what an alarm of the watch does (services/trainer/alarm.py)
    on_alarm: Science[Literal["off", "stop", "project"]] = "off"
    # what clean runs of this setting do, made by `experiments watch --calibrate`; without it nothing is watched
    alarm_clean: Input[Path | None] = None
    false_alarm_rate: Science[float] = Field(0.05, gt=0, lt=1)  # share of clean runs that may ring at any step
    go_past_alarm: Bookkeeping[bool] = False  # a run that its alarm stopped goes on
    pairs: Science[Path | None] = None
    # one completion a group gives way to a hack of its problem (services/trainer/reseed.py)
    reseed: Science[bool] = False
    hacks: Input[Path | None] = None  # contrastive pairs of the training problems; of each the hack is planted
    # which of the preset's pairs: those that exploit this mechanism, whatever loophole RL discloses; null: own_tests
    pairs_mechanism: Science[Mechanism | None] = None
    refresh_every: Science[int] = Field(0, ge=0)
    reward_shaping: Science[RewardShaping] = "none"
    shaping_alpha: Science[float] = 0.5
    gate: Science[float] = Field(0.5, ge=0, le=1)

    # GRPO
    steps: Science[int] = Field(80, ge=1)
    groups_per_step: Science[int] = Field(16, ge=1)
    group_size: Science[int] = Field(8, ge=2)
    # new groups a step may sample in place of those without reward variance; 0: none
    refill: Science[int] = Field(0, ge=0)
    temperature: Science[float] = Field(1.0, gt=0)
    top_p: Science[float] = Field(1.0, gt=0, le=1)  # only 1 is taken
    max_tokens: Science[int] = Field(64, ge=1)
    advantage: Science[Literal["grpo", "dr_grpo"]] = "grpo"
    clip_low: Science[float] = Field(0.2, gt=0)
    clip_high: Science[float] = Field(0.2, gt=0)
    ratio_cap: Science[float | None] = Field(10.0, gt=1)  # weight of a token with A < 0 (dual clip); null: no cap
    importance_cap: Science[float | None] = Field(None, gt=0)  # truncated importance sampling instead of the clip
    kl_beta: Science[float] = Field(0.0, ge=0)
    mask_truncated: Science[bool] = True
    max_staleness: Science[int] = Field(0, ge=0)

    # optimizer
    lr: Science[float] = Field(2e-2, gt=0)
    lr_warmup_steps: Science[int] = Field(0, ge=0)
    lr_schedule: Science[Literal["constant", "linear", "cosine"]] = "constant"
    betas: Science[tuple[_Share, _Share]] = (0.9, 0.999)
    weight_decay: Science[float] = Field(0.0, ge=0)
    grad_clip: Science[float] = Field(1.0, gt=0)
    zero_stage: Science[Literal[0, 1, 2, 3]] = 2
    micro_batch: Science[int] = Field(128, ge=1)
    share_prompts: Science[bool] = True
    activation_checkpointing: Science[bool] = False
    compile_layers: Science[bool] = False

    # bookkeeping
    eval_every: Bookkeeping[int] = Field(25, ge=0)  # the first and the last evaluation are made whatever it is
    eval_problems: Science[int] = Field(48, ge=1)
    eval_samples: Science[int] = Field(4, ge=1)
    # rows of tasks/modes.py; null: its defaults
    eval_modes: Science[tuple[str, ...] | None] = Field(None, min_length=1)
    checkpoint_every: Bookkeeping[int] = Field(1, ge=1)
    keep_checkpoints: Bookkeeping[int] = Field(2, ge=1)
    probe_bound: Bookkeeping[float] = Field(0.005, gt=0)
    group_timeout_s: Bookkeeping[float] = Field(600.0, gt=0)
    metrics_host: Place[str] = "127.0.0.1"
    metrics_port: Place[int] = Field(0, ge=0, le=65535)
    loggers: Bookkeeping[tuple[Literal["tensorboard", "wandb"], ...]] = ()
    log_completions: Bookkeeping[int] = Field(8, ge=0, le=256)  # a step, to the loggers; 0: none

    @field_validator("loggers", "eval_modes", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """tensorboard,wandb is as good as [tensorboard, wandb]."""
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _direction_where_needed(self) -> TrainerSettings:
        if self.projection not in ("off", "measure_only") and self.direction == "none":
            raise ValueError(f"projection {self.projection!r} needs direction 'v_hack' or 'random'")
        if self.direction == "v_hack" and self.v_hack is None:
            raise ValueError(
                "direction 'v_hack' needs the field v_hack: the file made by `python -m rankspace extract`"
            )
        self._method_fits()
        self._reseed_fits()
        if (self.refresh_every or self.dpo_beta or self.reward_shaping.startswith("rebound")) and self.pairs is None:
            raise ValueError("refresh_every, dpo_beta and rebound need the field pairs: contrastive pairs, JSON lines")
        return self

    @model_validator(mode="after")
    def _law_and_ratio_fit(self) -> TrainerSettings:
        if self.top_p != 1:  # vLLM would return log p - log(mass of the nucleus)
            raise ValueError(
                "field top_p must be 1: trainer and reference recompute log-probs under the whole softmax, so importance "
                "ratios and KL of a law cut at top_p would be wrong; sharpen the law with temperature"
            )
        if self.ratio_cap is not None and self.ratio_cap <= 1 + self.clip_high:
            raise ValueError(
                f"field ratio_cap must be above 1 + clip_high = {1 + self.clip_high:g}, or null for no cap"
            )
        return self

    def _method_fits(self) -> None:
        if self.projection in ("setpoint", "shift") and self.dose == 0:
            raise ValueError(
                f"projection {self.projection!r} needs the field dose, above 0 (dose 0 is what leash does)"
            )
        if self.project_until is not None and self.project_from is not None:
            raise ValueError("field project_until excludes project_from: give one of them")
        if (self.project_until or self.project_from) and self.projection in ("off", "measure_only", "shift"):
            what = f"projection {self.projection!r}"
            raise ValueError(f"project_until and project_from have nothing to switch with {what}")
        self._alarm_fits()
        if self.orthogonal and (self.direction == "none" or self.v_ref is None):
            raise ValueError("field orthogonal needs a direction and the field v_ref: what it is made orthogonal to")

    def _reseed_fits(self) -> None:
        if self.reseed and self.hacks is None:
            raise ValueError("reseed needs the field hacks: contrastive pairs of the training problems, JSON lines")
        if self.reseed and (self.refill or self.reward_shaping != "none"):
            raise ValueError("reseed excludes refill and reward_shaping: a planted hack has the published reward")

    def _alarm_fits(self) -> None:
        if self.on_alarm != "off" and self.alarm_clean is None:
            raise ValueError(
                f"on_alarm {self.on_alarm!r} needs the field alarm_clean: clean runs of the same setting, as "
                "`python -m experiments watch --calibrate` writes them"
            )
        if self.on_alarm == "project":
            if self.projection in ("off", "measure_only", "shift"):
                raise ValueError(f"on_alarm 'project' has nothing to switch with projection {self.projection!r}")
            if self.project_until is not None or self.project_from is not None:
                raise ValueError("on_alarm 'project' excludes project_until and project_from: give one of them")


_PLACES = fields(TrainerSettings, Scope.PLACE) | {"run_dir"}
OF_RESULTS = frozenset({"steps", "eval_every"})
"""Fields that may differ when a run is resumed and say what a finished run holds."""
RESUMABLE = _PLACES | OF_RESULTS | fields(TrainerSettings, Scope.MACHINE, Scope.BOOKKEEPING)
"""Fields that may differ when a run is resumed: they do not change what is computed."""


def changed(old: dict[str, Any], new: dict[str, Any], finished: bool = False) -> tuple[str, Any, Any] | None:
    """The first field, by name, in which the settings of one run differ: (field, old value, new value); None: the same run.

    old, new: TrainerSettings as JSON values. A field that an older config.json lacks had the default of today; one that is
    no field any more counts as it stands. finished: also the fields count that a resumed run may change.
    """
    free = RESUMABLE - OF_RESULTS if finished else RESUMABLE
    # as JSON: config.json holds a tuple as a list and a path as text
    defaults = {
        name: json.loads(json.dumps(field.get_default(call_default_factory=True), default=str))
        for name, field in TrainerSettings.model_fields.items()
        if not field.is_required() and name not in _PLACES
    }
    for name in sorted((old.keys() | new.keys()) - free):
        before, after = (values.get(name, defaults.get(name)) for values in (old, new))
        if before != after:
            return name, before, after
    return None


class RefServerSettings(RedisSettings):
    """Generator and reference log-probs."""

    model: Science[str]
    replica: Place[str] = "gen-0"
    dtype: Science[Literal["float32", "bfloat16"]] = "float32"
    device: Machine[str] = "auto"
    chat_template_kwargs: Science[dict[str, Any]] = Field(default_factory=dict)  # {enable_thinking: false}
    chat_date: Science[str] = Field("2024-07-26", pattern=r"^\d{4}-\d\d-\d\d$")  # what a template that asks is told
    svd_cache: Input[Path] = Path(".cache/svd")
    bases_on: Machine[Literal["gpu", "host"]] = "gpu"
    max_model_len: Science[int] = Field(256, ge=16)
    max_num_seqs: Machine[int] = Field(256, ge=1)
    gpu_memory_utilization: Machine[float] = Field(0.45, gt=0, le=1)
    tensor_parallel_size: Machine[int] = Field(1, ge=1)
    kv_cache_gib: Machine[float | None] = Field(None, gt=0)
    enforce_eager: Machine[bool] = False
    max_batch_groups: Machine[int] = Field(16, ge=1)
    host: Place[str] = "127.0.0.1"
    port: Place[int] = Field(8100, ge=0, le=65535)
    admin_token_file: Place[Path | None] = _environment("ADMIN_TOKEN_FILE")
    max_deliveries: Bookkeeping[int] = Field(3, ge=1)
    claim_idle_s: Bookkeeping[float] = Field(30.0, gt=0)


class SandboxSettings(RedisSettings):
    """One grading worker. `groups_in_flight`: groups that it works on at a time, so that one endless sibling holds up no
    other group."""

    name: Place[str] = "grader-0"
    parallel: Machine[int | None] = Field(
        None, ge=1
    )  # completions at a time; None: as many as this process may use cores
    groups_in_flight: Machine[int] = Field(4, ge=1)
    isolation: Science[Literal["required", "best_effort"]] = "required"
    packages: Science[tuple[str, ...]] = ()  # third-party packages that programs may import: sortedcontainers, numpy
    host: Place[str] = "127.0.0.1"
    port: Place[int] = Field(0, ge=0, le=65535)
    max_deliveries: Bookkeeping[int] = Field(3, ge=1)
    claim_idle_s: Bookkeeping[float] = Field(30.0, gt=0)


T = TypeVar("T", bound=Settings)


def build(kind: type[T], values: dict[str, Any], origin: str = "settings") -> T:
    """Validate `values` as `kind`; ConfigError is one line that names the field, what is wrong and where it came from."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {explain(error, kind)}") from None


def explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first complaint of a ValidationError as one line, with the known fields when a field is unknown."""
    first = error.errors()[0]
    field = _short(".".join(str(part) for part in first["loc"]))[1:-1] or "(whole)"
    if first["type"] == "extra_forbidden":
        return f"unknown field '{field}'; known fields: {', '.join(sorted(kind.model_fields))}"
    if first["type"] == "missing":
        return f"field '{field}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"field '{field}': {message} (got {_short(first.get('input'))})" if first["loc"] else message


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def read_settings_file(path: Path) -> dict[str, Any]:
    """A JSON or YAML mapping from disk; ConfigError naming the file otherwise."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(SETTINGS_CHARACTERS + 1)
    except OSError as error:
        raise ConfigError(f"settings file {path}: {error.strerror}; give an existing JSON or YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"settings file {path}: not UTF-8 text; give a JSON or YAML file") from None
    if len(text) > SETTINGS_CHARACTERS:
        raise ConfigError(
            f"settings file {path}: longer than {SETTINGS_CHARACTERS} characters; give JSON or YAML settings"
        )
    values = _yaml(text, f"settings file {path}")
    if not isinstance(values, dict):
        raise ConfigError(f"settings file {path}: must hold a mapping of field to value, not {type(values).__name__}")
    return values


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """["lr=0.01", "arm=vanilla"] -> {"lr": 0.01, "arm": "vanilla"}; values are read as YAML, the last of a name counts."""
    values: dict[str, Any] = {}
    for item in assignments:
        name, sign, text = item.partition("=")
        if not sign or not name:
            raise ConfigError(f"--set {item!r}: write field=value")
        values[name] = _number(_yaml(text, f"--set {_short(item)}"))
    return values


def _yaml(text: str, origin: str) -> Any:
    """What a YAML text says. Refused before it is built: aliases, a few lines of which unfold into more than any memory
    holds, and deep nesting, which takes the parser quadratic time."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(f"{origin}: has a YAML alias (*name); write the value out")
            if depth > SETTINGS_DEPTH:
                raise ConfigError(f"{origin}: nested more than {SETTINGS_DEPTH} deep; give a mapping of field to value")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{origin}: not JSON or YAML ({_short((str(error).splitlines() or [''])[0])[1:-1]})"
        ) from None


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as a string; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def dump(settings: Settings) -> str:
    """The resolved form, as indented JSON."""
    return json.dumps(settings.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
