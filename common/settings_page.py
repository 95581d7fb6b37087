"""docs/settings.md: every field of every service's settings with type, default, scope and meaning.

    python -m common.settings_page > docs/settings.md

Names, types, defaults and scopes are read from settings.py; what a field means stands here, once. A field without a
meaning, and a meaning without a field, is an error of the test that holds the page.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from common.scopes import Scope, Settings
from common.settings import RedisSettings, RefServerSettings, SandboxSettings, TrainerSettings

MEANINGS: dict[str, str] = {
    # every service
    "redis_url": "address of Redis, without user or password (environment REDIS_URL)",
    "redis_username": "Redis user of this service (REDIS_USERNAME)",
    "redis_password_file": "file that holds that user's password (REDIS_PASSWORD_FILE)",
    "model": "model folder in Hugging Face form, hub name, or GGUF file",
    "dtype": "of the base weights and activations; delta_S and its optimizer are float32",
    "device": "cpu, cuda, cuda:N; auto takes the GPU where there is one",
    "chat_template_kwargs": "variables for the chat template, such as {enable_thinking: false}",
    "chat_date": "the date that a template is told when it asks for one",
    "svd_cache": "directory of singular value decompositions",
    "host": "address that the service's HTTP server listens on",
    "port": "its port; 0 takes a free one",
    "max_deliveries": "times a message is tried before it goes to the dead letters",
    "claim_idle_s": "seconds after which the work of a silent process is taken over",
    # what runs
    "run_id": "name of the run, also of its directory",
    "run_dir": "directory of the run's files",
    "arm": "name of the arm, for records; its settings are fields like any other",
    "seed": "of problem order, sampling and random directions",
    "train_problems": "JSON lines of problems that RL trains on",
    "heldout_problems": "JSON lines of problems that evaluations use",
    "loophole": "flaw that the training prompt discloses (tasks/loopholes.py); null: none",
    "gpu_memory_fraction": "cap on this process's share of the card",
    # the method
    "adapter": "antipasto: singular-value scales; pissa_freeze_a: B of PiSSA with A frozen",
    "adapter_form": "merged: one weight per step; factored: three products per layer",
    "projection": "what is done to the gradient, or to delta_S after the step (docs/method.md)",
    "direction": "direction that is acted on or measured",
    "v_hack": "direction file made by `python -m rankspace extract`",
    "v_ref": "direction file that positions are measured against; null: v_hack, if it is one",
    "orthogonal": "the direction acted on is made orthogonal to v_ref, module by module",
    "dose": "leash, setpoint, shift: component of delta_S along v per module",
    "dose_ramp": "setpoint: steps until the dose is reached",
    "start_from": "run directory whose newest delta_S is added to the start",
    "dpo_beta": "weight of the contrastive loss on the pairs; 0: none",
    "dpo_gamma": "slope of that loss, the beta of DPO",
    "dpo_pairs": "pairs a step of that loss",
    "bias_strength": "bias: share of a module's gradient norm",
    "project_until": "intervene in steps before this one",
    "project_from": "intervene once the five-step mean strict hack rate is as high",
    "pairs": "JSON lines of contrastive pairs, where training needs them (refresh, Rebound, DPO)",
    "pairs_mechanism": "which of the preset's pairs: those that exploit this mechanism",
    "reseed": "one completion a group gives way to a hack of its problem (docs/method.md)",
    "hacks": "contrastive pairs of the training problems; of each the hack is planted",
    "refresh_every": "extract v_hack anew every so many steps; 0: never",
    "reward_shaping": "penalty on reward or advantage (Rebound in several forms, ground truth)",
    "shaping_alpha": "strength of that penalty",
    "gate": "share of modules with positive held-out cos_align that v_hack needs",
    "on_alarm": "what an alarm of the watch does",
    "alarm_clean": "clean runs of this setting, from `experiments watch --calibrate`; null: no watch",
    "false_alarm_rate": "share of clean runs that may ring at any step",
    "go_past_alarm": "a run that its alarm stopped goes on",
    # GRPO
    "steps": "optimizer steps",
    "groups_per_step": "problems a step",
    "group_size": "completions a problem",
    "refill": "new groups a step may sample for those without reward variance; 0: none",
    "temperature": "of sampling",
    "top_p": "only 1 is taken: log-probs are those of the whole softmax",
    "max_tokens": "tokens of a completion at most",
    "advantage": "grpo divides by the group's standard deviation, dr_grpo does not",
    "clip_low": "importance ratio below 1 − this is clipped",
    "clip_high": "importance ratio above 1 + this is clipped",
    "ratio_cap": "greatest weight of a token with negative advantage (dual clip); null: no cap",
    "importance_cap": "truncated importance sampling at this ratio in place of the clip; null: the clip",
    "kl_beta": "weight of the KL penalty to the base model; 0: none",
    "mask_truncated": "completions that were cut off do not train",
    "max_staleness": "pushes by which a rollout's policy version may lag",
    # optimizer
    "lr": "learning rate of delta_S (AdamW)",
    "lr_warmup_steps": "steps of linear warm-up",
    "lr_schedule": "after the warm-up",
    "betas": "of AdamW",
    "weight_decay": "of AdamW",
    "grad_clip": "bound on the gradient's norm, after the projection",
    "zero_stage": "DeepSpeed ZeRO stage",
    "micro_batch": "completions a forward pass",
    "share_prompts": "a prompt goes through the model once for all its completions, where the model allows it",
    "activation_checkpointing": "recompute activations to save memory",
    "compile_layers": "torch.compile each decoder layer",
    # bookkeeping
    "eval_every": "evaluate every so many steps; first and last always; 0: only those",
    "eval_problems": "held-out problems an evaluation",
    "eval_samples": "completions a problem and mode",
    "eval_modes": "modes of evaluation (docs/tasks.md); null: the defaults",
    "checkpoint_every": "steps between checkpoints",
    "keep_checkpoints": "newest checkpoints that are kept",
    "probe_bound": "greatest log-prob gap between generator and trainer, nats a token",
    "group_timeout_s": "seconds a step waits for its groups",
    "metrics_host": "address of the Prometheus endpoint",
    "metrics_port": "its port; 0 takes a free one",
    "loggers": "tensorboard, wandb (docs/interop.md)",
    "log_completions": "completions a step to the loggers; 0: none",
    # generator
    "replica": "name of this generator",
    "bases_on": "where U, Vh and W0 lie: gpu, or host to save card memory",
    "max_model_len": "tokens of prompt and completion together",
    "max_num_seqs": "sequences at a time",
    "gpu_memory_utilization": "vLLM's share of the card",
    "tensor_parallel_size": "cards that share one model",
    "kv_cache_gib": "size of the KV cache; null: what gpu_memory_utilization leaves",
    "enforce_eager": "no CUDA graphs",
    "max_batch_groups": "requests taken from the queue at a time",
    "admin_token_file": "file with the token of the admin routes; null: they answer 403",
    # grader
    "name": "name of this grader",
    "parallel": "completions at a time; null: as many as cores",
    "groups_in_flight": "groups that may be in work at a time",
    "isolation": "required: refuse to start without every isolation layer",
    "packages": "third-party packages that programs may import: sortedcontainers, numpy",
}
SECTIONS: tuple[tuple[str, str, type[Settings]], ...] = (
    ("Trainer", "`--set FIELD=VALUE` or `trainer.FIELD`", TrainerSettings),
    ("Generator", "`--set generator.FIELD=VALUE`", RefServerSettings),
    ("Graders", "`--set sandbox.FIELD=VALUE`; `sandbox.workers` is the number of graders", SandboxSettings),
)
SCOPES = {
    Scope.SCIENCE: "decides the result; compared runs must agree, a resumed run too",
    Scope.INPUT: "path of a file whose content decides; a resumed run must have the same",
    Scope.NAME: "which run it is",
    Scope.PLACE: "addresses, credentials, names of processes",
    Scope.MACHINE: "what the hardware needs; may change on resuming",
    Scope.BOOKKEEPING: "what is kept and watched; may change on resuming",
}


def page() -> str:
    """The whole page, Markdown."""
    lines = [
        "# Settings",
        "",
        "Every field of the three services. This page is made from `common/settings.py`:",
        "`python -m common.settings_page > docs/settings.md`. Arms and presets choose among these fields;",
        "[shell](shell.md#settings) says how to set them, `--dry-run` prints them as they resolve.",
        "",
        "| scope | |",
        "|---|---|",
        *(f"| {scope.value} | {SCOPES[scope]} |" for scope in Scope),
    ]
    for title, how, kind in SECTIONS:
        names = [name for name in kind.model_fields if name not in RedisSettings.model_fields]
        lines += ["", f"## {title}", "", f"{how}.", "", *_table(kind, names)]
    return "\n".join(
        [*lines, "", "## Redis, in every service", "", *_table(RedisSettings, list(RedisSettings.model_fields))]
    )


def _table(kind: type[Settings], names: list[str]) -> list[str]:
    rows = []
    for name in names:
        field = kind.model_fields[name]
        scope = next(mark for mark in field.metadata if isinstance(mark, Scope))
        bounds = [str(mark) for mark in field.metadata if not isinstance(mark, Scope)]
        kind_of = _plain(field.annotation) + (f", {_bounds(bounds)}" if bounds else "")
        rows.append(f"| `{name}` | {kind_of} | {_default(field)} | {scope.value} | {MEANINGS[name]} |")
    return ["| field | type | default | scope | meaning |", "|---|---|---|---|---|", *rows]


def _plain(kind: Any) -> str:
    """A type as a person writes it; a bar would end a table's cell."""
    text = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    text = re.sub(r"(typing|pathlib|collections\.abc)\.|<class '(\w+\.)*(\w+)'>", r"\3", text)
    text = re.sub(
        r"Annotated\[(\w+), [^\]]*\]\)\]", r"\1", text
    )  # bounds of a part: tuple[Annotated[float, ...([...])], ...]
    text = re.sub(r"Literal\[([^\]]*)\]", lambda found: found.group(1).replace("'", "").replace(", ", " / "), text)
    return text.replace("NoneType", "None").replace(" | ", " or ").replace("|", "or")


def _bounds(marks: list[str]) -> str:
    signs = {"Ge": "≥", "Gt": ">", "Le": "≤", "Lt": "<"}
    told = []
    for mark in marks:
        found = re.fullmatch(r"(Ge|Gt|Le|Lt)\(\w+=([^)]*)\)", mark)
        if found:
            told.append(f"{signs[found.group(1)]} {found.group(2)}")
    return " and ".join(told) or "with a pattern"


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        made = field.default_factory()
        return "`{}`" if made == {} else "environment"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    sys.stdout.write(page() + "\n")
