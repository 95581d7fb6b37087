"""Presets: which model, which problems, how long. A preset and an arm and a seed give every TrainerSettings value.

Precedence, weakest first: TrainerSettings defaults < preset < the arm's defaults < --set assignments < arm. An
assignment to a field that the arm fixes is refused, because the run would then carry a name that is not what it did.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.scopes import Scope, fields
from common.settings import TrainerSettings
from experiments.design import arms
from experiments.design.arms import Arm

# Every path a preset names, in one place; relative to the repository root.
ORGANISM_MODEL = "tasks/organism/model"
MECHANISMS_MODEL = ".cache/models/organism_mechanisms"
PRACTICE_TRAIN = "tasks/practice/practice_train.jsonl"
PRACTICE_HELDOUT = "tasks/practice/practice_heldout.jsonl"
PAIRS = "tasks/pairs/pairs.jsonl"
HACKS = "tasks/pairs/hacks.jsonl"
MATHS_TRAIN = "tasks/maths/maths_train.jsonl"
MATHS_HELDOUT = "tasks/maths/maths_heldout.jsonl"
INSTRUCT = ".cache/practice_instruct"
SMOLLM_MODEL = ".cache/models/SmolLM2-135M-Instruct"
CODER_SMALL = "models/coder-0.5b"  # Qwen2.5-Coder-0.5B-Instruct
CODER = "models/coder-1.5b"  # Qwen2.5-Coder-1.5B-Instruct
QWEN_SMALL = "Qwen/Qwen3.5-2B"
QWEN_LARGE = "Qwen/Qwen3-4B"
# Where the folders above come from when they are not there.
SOURCES = {CODER_SMALL: "Qwen/Qwen2.5-Coder-0.5B-Instruct", CODER: "Qwen/Qwen2.5-Coder-1.5B-Instruct"}
LEETCODE_TRAIN = "data/leetcode_train_medhard.jsonl"
LEETCODE_HELDOUT = "data/leetcode_test_medhard.jsonl"
LEETCODE_HACKS = "data/leetcode_hacks.jsonl"
_FETCH = "make it with `python -m tasks fetch leetcode --split {} --difficulty medium,hard --out {}`"
FETCHED = {
    path: _FETCH.format(split, path) for split, path in (("train", LEETCODE_TRAIN), ("test", LEETCODE_HELDOUT))
} | {
    LEETCODE_HACKS: f"make it with `python -m tasks pairs --problems {LEETCODE_TRAIN} --samples F --heldout 0 --out "
    f"{LEETCODE_HACKS}` from samples of the model"
}
DIRECTIONS = Path(".cache/directions")
_BRING = "experiments.launch.bring"  # imported when a run is prepared

# Decided by preset, arm and seed themselves, never by --set.
NAMED = fields(TrainerSettings, Scope.NAME) | {"v_hack", "direction"}


@dataclass(frozen=True)
class Preset:
    """One scale of the experiment.

    values   TrainerSettings fields            server   RefServerSettings fields (lengths, memory)
    graders  sandbox workers to start          gpu      needs an accelerator to finish in reasonable time
    prepare  module whose prepare(models) makes the files and, if named, the model that are not in the repository (None:
             nothing to make)
    hacks    pairs of the training problems, for arms that plant hacks (reseed)
    if_hacks / if_not: the preset that follows when vanilla does or does not pass H4's threshold (None: none follows)
    """

    name: str
    title: str
    values: dict[str, Any] = field(hash=False)
    server: dict[str, Any] = field(hash=False, default_factory=dict)
    graders: int = 2
    gpu: bool = False
    prepare: str | None = None
    hacks: str | None = None
    if_hacks: str | None = None
    if_not: str | None = None


_PRACTICE = {"train_problems": PRACTICE_TRAIN, "heldout_problems": PRACTICE_HELDOUT, "pairs": PAIRS}
_INSTRUCT = {
    "train_problems": f"{INSTRUCT}/train.jsonl", "heldout_problems": f"{INSTRUCT}/heldout.jsonl",
    "pairs": f"{INSTRUCT}/pairs.jsonl",
}  # fmt: skip
_ORGANISM = {"model": ORGANISM_MODEL, **_PRACTICE, "dtype": "float32", "device": "cpu"}
_ORGANISM_SERVER = {"max_model_len": 256, "dtype": "float32", "device": "cpu"}
_LEETCODE = {
    "train_problems": LEETCODE_TRAIN, "heldout_problems": LEETCODE_HELDOUT, "pairs": PAIRS,
    "dtype": "bfloat16", "device": "cuda", "steps": 200, "groups_per_step": 16, "max_tokens": 1536,
    "temperature": 0.7, "kl_beta": 1e-3, "lr": 1e-3, "micro_batch": 8, "max_staleness": 1, "probe_bound": 0.25,
    "eval_problems": 119, "eval_samples": 1, "checkpoint_every": 5, "group_timeout_s": 1800.0,
}  # fmt: skip
# The pilot's values (docs/results/coder-1.5b). On policy: with fast graders little is gained by staleness on one card.
_CODER = {
    **_LEETCODE, "steps": 50, "max_tokens": 768, "temperature": 1.0, "lr": 3e-3, "max_staleness": 0, "group_size": 8,
    "compile_layers": True, "eval_every": 25, "eval_samples": 2,
}  # fmt: skip
# As in the benchmark; with thinking, most completions would be cut off within a thought.
_NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
_CODER_SERVER = {"max_model_len": 2816, "dtype": "bfloat16"}  # prompts: 730 tokens, 1,940 where tests are shown

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("smoke", "Three steps on the organism: does everything talk to everything?", graders=1, hacks=HACKS,
               if_hacks="demo", if_not="demo", server=_ORGANISM_SERVER,
               values={**_ORGANISM, "steps": 3, "groups_per_step": 4, "group_size": 4, "eval_problems": 4,
                       "eval_samples": 2, "eval_every": 0}),
        Preset("demo", "The organism on a CPU", hacks=HACKS, if_hacks="qwen3.5-2b", if_not=None,
               server=_ORGANISM_SERVER, values=dict(_ORGANISM)),
        Preset("mechanisms", "The organism that knows four loopholes: does v from one stop hacks by another?",
               hacks=HACKS, prepare="experiments.launch.mechanisms",
               server=_ORGANISM_SERVER,
               values={**_ORGANISM, "model": MECHANISMS_MODEL, "max_tokens": 100, "steps": 100, "eval_every": 0,
                       "eval_samples": 2, "eval_modes": ["no_hint", "own_tests", "sentinel", "stdout_marker",
                                                         "result_file", "asked_for_tests"]}),
        Preset("maths", "Five steps on word problems: the same loop on another task", graders=1, hacks=HACKS,
               server=_ORGANISM_SERVER,
               values={**_ORGANISM, "train_problems": MATHS_TRAIN, "heldout_problems": MATHS_HELDOUT, "loophole": None,
                       "steps": 5, "groups_per_step": 8, "group_size": 8, "lr": 2e-3, "temperature": 1.3,
                       "eval_problems": 9, "eval_samples": 2, "eval_every": 0}),
        Preset("smollm", "SmolLM2-135M-Instruct on the practice problems", gpu=True, graders=8, if_hacks="qwen3.5-2b",
               if_not="qwen3.5-2b", prepare="experiments.launch.smollm", hacks=f"{INSTRUCT}/hacks.jsonl",
               server={"max_model_len": 512, "dtype": "bfloat16", "gpu_memory_utilization": 0.1,
                       "kv_cache_gib": 2.0},
               values={"model": SMOLLM_MODEL, **_INSTRUCT, "dtype": "bfloat16", "steps": 150, "max_tokens": 192,
                       "temperature": 0.7, "lr": 1e-2, "micro_batch": 64, "activation_checkpointing": True,
                       "max_staleness": 1, "probe_bound": 0.25, "eval_every": 50, "checkpoint_every": 5}),
        Preset("coder-0.5b", "Qwen2.5-Coder-0.5B-Instruct, LeetCode medium and hard, 8 generations", gpu=True, graders=8,
               hacks=LEETCODE_HACKS, if_hacks="coder-1.5b", if_not="coder-1.5b",
               server=_CODER_SERVER, values={**_CODER, "model": CODER_SMALL}),
        Preset("coder-1.5b", "Qwen2.5-Coder-1.5B-Instruct, LeetCode medium and hard, 8 generations", gpu=True, graders=8,
               hacks=LEETCODE_HACKS, if_hacks="qwen3-4b", if_not="qwen3.5-2b",
               server=_CODER_SERVER, values={**_CODER, "model": CODER}),
        Preset("qwen3.5-2b", "Qwen3.5-2B, LeetCode medium and hard, 8 generations", gpu=True, graders=8,
               hacks=LEETCODE_HACKS, if_hacks="qwen3.5-2b", if_not="qwen3-4b",
               server={"max_model_len": 3072, "dtype": "bfloat16"},
               values={"model": QWEN_SMALL, **_LEETCODE, **_NO_THINKING, "group_size": 8}),
        Preset("qwen3-4b", "Qwen3-4B, LeetCode medium and hard, 4 generations", gpu=True, graders=8,
               hacks=LEETCODE_HACKS, if_hacks="qwen3-4b", if_not=None,
               server={"max_model_len": 3072, "dtype": "bfloat16"},
               values={"model": QWEN_LARGE, **_LEETCODE, **_NO_THINKING, "group_size": 4}),
    )
}  # fmt: skip


def get(name: str) -> Preset:
    """The preset of that name; ConfigError listing the names otherwise."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"unknown preset '{name}'; presets: {', '.join(PRESETS)}") from None


def prepare(name: str, *settings: TrainerSettings) -> None:
    """Make what the preset needs and the repository does not hold, and bring the models here; quick when all is there.

    ConfigError when it cannot, or when a file of problems that these settings name is missing, with the command that
    fetches it; the files come first, for a model may be a long download.
    """
    module = get(name).prepare
    if module is not None:
        import_module(module).prepare({one.model for one in settings})
    for one in settings:
        for field_name in ("train_problems", "heldout_problems", "hacks"):
            path = getattr(one, field_name)
            if path is not None and not path.is_file():
                how = FETCHED.get(
                    str(path), "give an existing JSON-lines file (`python -m tasks check FILE` tests one)"
                )
                raise ConfigError(f"field '{field_name}': no file {path}; {how}")
    for model in dict.fromkeys(one.model for one in settings):
        source = SOURCES.get(model) if not Path(model).is_dir() else None
        import_module(_BRING).bring(source or model, Path(model) if source else None)


def run_id(preset: str, arm: str, seed: int) -> str:
    """The one name of this combination, e.g. 'demo-projected-s0'; `preset` may be the name that the user gave instead."""
    return f"{preset}-{arm}-s{seed}"


def direction_path(preset: str, arm: Arm, seed: int, adapter: str = "antipasto", sources: str = "") -> Path:
    """Where the direction file of this run lies: one for all seeds, except that shuffled labels are drawn by seed.

    sources: a mark of model, pairs, dtype or rendering that are not the preset's, so that runs side by side do not
    overwrite each other's.
    """
    drawn = f"_s{seed}" if arm.direction in ("shuffled", "warmup") else ""
    suffix = "" if adapter == "antipasto" else f"_{adapter}"
    return DIRECTIONS / preset / f"{arm.direction}{drawn}{suffix}{sources}.safetensors"


def resolve(
    preset: str,
    arm: str,
    seed: int,
    assignments: dict[str, Any] | None = None,
    runs_root: Path = Path("runs"),
    run_dir: Path | None = None,
    redis_url: str | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Every TrainerSettings value of one run, ready for `common.settings.build(TrainerSettings, values)`. Pure.

    preset, arm   names                          assignments  from --set, already parsed
    run_dir       default: runs_root / run_id    redis_url    default: the settings' own default
    name          stands for the preset's in run_id, so that runs of other settings lie side by side
    Raises ConfigError for an unknown preset or arm, an unknown field, or an assignment to a field that is not free.
    """
    chosen, variant, free = get(preset), arms.get(arm), dict(assignments or {})
    _check_assignments(free, variant)
    values = {"loophole": "simple_overwrite_tests", **chosen.values, **variant.defaults, **free, **variant.overrides}
    values |= _pairs_of(values.get("pairs_mechanism"), free, chosen)
    if values.get("reseed") and chosen.hacks is not None:
        values.setdefault("hacks", chosen.hacks)
    if variant.starts_from is not None:
        values.setdefault("start_from", str(Path(runs_root) / run_id(name or preset, variant.starts_from, seed)))
    adapter, sources = values.get("adapter", "antipasto"), _sources(values, chosen)
    if variant.direction != "v_hack" or values["direction"] == "random":
        # positions are measured against v_hack in every arm; where the run acts along v_hack, that is the default
        values.setdefault("v_ref", str(direction_path(preset, arms.get("vanilla"), seed, adapter, sources)))
    name = run_id(name or preset, arm, seed)
    values |= {
        "run_id": name,
        "run_dir": str(run_dir if run_dir is not None else Path(runs_root) / name),
        "arm": arm,
        "seed": seed,
        "v_hack": str(direction_path(preset, variant, seed, adapter, sources)),
    }
    if redis_url is not None:
        values["redis_url"] = redis_url
    return values


def _pairs_of(mechanism: Any, free: dict[str, Any], preset: Preset) -> dict[str, str]:
    """{"pairs": FILE} where the user asks for another mechanism's pairs than those the preset names."""
    own = preset.values.get("pairs")
    if not isinstance(mechanism, str):  # none is asked for, or no name: the settings refuse it
        return {}
    if own is None:
        raise ConfigError(
            f"--set pairs_mechanism: preset '{preset.name}' names no pairs to choose among; give pairs=FILE"
        )
    path = Path(own)
    path = path if mechanism == "own_tests" else path.with_stem(f"{path.stem}_{mechanism}")
    if str(free.get("pairs", own)) not in (own, str(path)):
        raise ConfigError(
            f"--set pairs_mechanism: it chooses among the pairs of preset '{preset.name}'; with pairs={free['pairs']} leave it "
            "out (`python -m tasks pairs --loophole NAME` makes pairs of another mechanism)"
        )
    return {"pairs": str(path)}


EXTRACTED_WITH = ("dtype", "chat_template_kwargs", "chat_date")  # also decide what a direction is


def _sources(values: dict[str, Any], preset: Preset) -> str:
    """'' for the preset's own model, pairs, dtype and rendering; '_' and 8 hex digits of them for others.

    Two runs that would make different directions must not share a file: each would make it anew over the other's.
    """
    named = [str(values.get(field)) for field in ("model", "pairs")]
    own = [str(preset.values.get(field)) for field in ("model", "pairs")]
    for field_name in EXTRACTED_WITH:
        default = TrainerSettings.model_fields[field_name].get_default(call_default_factory=True)
        asked, usual = values.get(field_name, default), preset.values.get(field_name, default)
        if asked != usual:
            named.append(f"{field_name}={json.dumps(asked, sort_keys=True, default=str)}")
    return "" if named == own else "_" + hashlib.sha256("\n".join(named).encode()).hexdigest()[:8]


def _check_assignments(free: dict[str, Any], variant: Arm) -> None:
    for name in free:
        if name not in TrainerSettings.model_fields:
            known = ", ".join(sorted(TrainerSettings.model_fields))
            raise ConfigError(f"--set {name}: unknown field '{name}'; known fields: {known}")
        if name in NAMED:
            raise ConfigError(f"--set {name}: decided by --preset, --arm and --seed; choose another of those instead")
        if name in variant.overrides and free[name] != variant.overrides[name]:
            raise ConfigError(
                f"--set {name}: arm '{variant.name}' fixes it at {variant.overrides[name]!r}; choose another arm"
            )
