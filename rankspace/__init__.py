"""rankspace: gradient projection against reward hacking, as a library.

    adapter = rankspace.attach(model)                                   # delta_S on every attention and MLP matrix
    direction = rankspace.load_direction("v_hack.safetensors", adapter.modules)
    hook = rankspace.GradientHook(optimizer, adapter, direction)        # or ds_hook.ProjectionHook(engine, ...)
    hook.before_step(); optimizer.step(); hook.after_step()             # or trl.ProjectionCallback(adapter, direction)
    alarm = rankspace.HackWatch("clean.json", 0.05).step(row)           # a warning with a bound on false alarms

Needs torch and safetensors alone. Submodules load on first use, so `import rankspace` costs nothing; `ds_hook` needs
DeepSpeed, `trl` and `export` need transformers, and say so.
"""

from __future__ import annotations

import importlib
from typing import Any

from .errors import RankspaceError

_HOME = {
    "Adapter": "adapter",
    "attach": "adapter",
    "detach": "adapter",
    "group_advantages": "advantage",
    "Direction": "direction",
    "PairGradients": "direction",
    "extract_gradients": "direction",
    "hack_direction": "direction",
    "load_direction": "direction",
    "random_direction": "direction",
    "require_gate": "direction",
    "require_validated": "direction",
    "save_direction": "direction",
    "shuffled_direction": "direction",
    "subspace_direction": "direction",
    "validate": "direction",
    "export_model": "export",
    "attach_lora": "lora",
    "CleanRuns": "hack_watch",
    "HackWatch": "hack_watch",
    "GradientHook": "hook",
    "hook_into": "hook",
    "push_to_hub": "hub",
    "completion_logprobs": "logprobs",
    "completion_mask": "loss",
    "policy_loss": "loss",
    "MergeSource": "merge",
    "merged_weight": "merge",
    "split_flat": "merge",
    "Pair": "pairs",
    "TokenizedPair": "pairs",
    "load_pairs": "pairs",
    "tokenize_pair": "pairs",
    "Layout": "projection",
    "project": "projection",
    "project_update": "projection",
    "update_cosine": "projection",
    "drift_cosine": "projection",
    "merged_parameters": "sending",
    "SavedDelta": "adapter_io",
    "load_adapter": "adapter_io",
    "read_delta": "adapter_io",
    "save_adapter": "adapter_io",
    "concept_vector": "rebound",
    "penalised_reward": "rebound",
    "rebound_score": "rebound",
}
_MODULES = (
    "adapter",
    "adapter_io",
    "advantage",
    "batch",
    "compile",
    "direction",
    "ds_hook",
    "export",
    "hack_watch",
    "hook",
    "loss",
    "merge",
    "pairs",
    "projection",
    "rebound",
    "svd_cache",
    "targets",
    "trl",
)

# Modules that moved: the former name works until 0.3.
_FORMER = {"saved": "adapter_io", "source": "run_checkpoint", "steps": "hook_base", "folder": "atomic_dir"}

__all__ = ["RankspaceError", *sorted(_HOME), *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _FORMER:
        return importlib.import_module(f".{_FORMER[name]}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
