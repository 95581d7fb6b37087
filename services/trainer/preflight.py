"""What can be known to be wrong before torch is loaded: files, the direction against the model, Redis.

Each check raises a ConfigError of one line. Nothing is written before all of them pass.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.model_names import local, weight_files
from common.settings import Mechanism, TrainerSettings
from rankspace.errors import RankspaceError
from rankspace.pairs import load_pairs
from rankspace.targets import DEFAULT_TARGETS, Kind, delta_size, hits, require_covered
from rankspace.weights import plain, plain_shapes
from services.trainer import alarm, loggers
from tasks import modes
from tasks.exploits import disclosed


def check(s: TrainerSettings) -> None:
    """All checks that need neither torch nor Redis."""
    loggers.require(s.loggers)
    modes.chosen(s.eval_modes, s.loophole)
    shapes = weight_shapes(s.model)
    for name, path in (
        ("train_problems", s.train_problems),
        ("heldout_problems", s.heldout_problems),
        ("pairs", s.pairs),
    ):
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"field '{name}': no file {path}; give an existing JSON-lines file")
    if s.start_from is not None:
        check_start(s.start_from)
    alarm.check(s)
    if s.pairs_mechanism is not None:
        check_pairs(s.pairs, s.pairs_mechanism)
    check_modules(s.model, shapes)
    if s.direction == "v_hack" and s.v_hack is not None:  # TrainerSettings refuses one without the other
        check_direction(s.v_hack, shapes, s.gate, s.adapter)
        check_chat(s.v_hack, s)


def check_start(run: Path) -> None:
    """The run to start from has finished: which delta_S a running one would give hangs on the hour."""
    try:
        state = json.loads((run / "status.json").read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"field 'start_from': no run in {run}; give the directory of a finished run") from None
    if state != "finished" or not (run / "checkpoints").is_dir():
        what = "has no checkpoints" if state == "finished" else f"is {state}"
        raise ConfigError(f"field 'start_from': the run in {run} {what}; finish it first")


def check_pairs(path: Path | None, mechanism: Mechanism) -> None:
    """The pairs are of the mechanism that the settings name."""
    if path is None:
        raise ConfigError(
            f"field 'pairs_mechanism': {mechanism} needs the field pairs: contrastive pairs of that mechanism"
        )
    try:
        pairs = load_pairs(path)
    except RankspaceError as error:
        raise ConfigError(f"field 'pairs': {error}") from None
    for pair in pairs:
        found = disclosed(pair.prompt[-1]["content"])
        if found != mechanism:
            raise ConfigError(
                f"field 'pairs_mechanism': {mechanism}, but pair {pair.id} of {path} is of {found}; give others"
            )


def weight_shapes(model: str) -> dict[str, tuple[int, ...]]:
    """Plain name -> shape of every tensor of a model, from the files' headers. ConfigError also when a shard is missing."""
    folder = local(model)
    weight_files(folder)
    try:
        return plain_shapes(folder)
    except RankspaceError as error:
        raise ConfigError(f"field 'model': {error}") from None


def check_modules(model: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Some 2-d weight has the name of an attention or MLP matrix that the adapter knows."""
    names = [
        name.removesuffix(".weight") for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2
    ]
    if not any(hits(name) for name in names):
        raise ConfigError(
            f"field 'model': {model} has no module that the adapter knows ({', '.join(DEFAULT_TARGETS)}); it has "
            f"{', '.join(names[:3])} ...; give a Llama- or Qwen-like model"
        )
    try:
        require_covered(shapes)
    except RankspaceError as error:
        raise ConfigError(f"field 'model': {model}: {error}") from None


def check_chat(path: Path, s: TrainerSettings) -> None:
    """The direction's pairs were rendered as this run's prompts are. (A file that does not say was made without kwargs.)"""
    head = _head(path)
    if head.get("kind") == "random":
        return
    for field, default in (("chat_template_kwargs", {}), ("chat_date", s.chat_date)):
        made, ours = head.get(field, default), getattr(s, field)
        if made != ours:
            raise ConfigError(
                f"field '{field}': {path} was extracted with {made!r}, this run has {ours!r}; extract it again with the same"
            )


def _head(path: Path) -> dict[str, Any]:
    """A direction file's metadata. Raises what safetensors and json raise."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return dict(json.loads((file.metadata() or {})["rankspace"]))


def check_direction(path: Path, shapes: dict[str, tuple[int, ...]], gate: float, kind: Kind = "antipasto") -> None:
    """The direction file exists, is whole, passes its gate, and names weights that this model has."""
    from safetensors import SafetensorError

    make = f"make it with `python -m rankspace extract --out {path}`"
    if not path.is_file():
        raise ConfigError(f"field 'v_hack': no file {path}; {make}")
    try:
        head = _head(path)
        modules = [(str(name), int(r)) for name, r in head["modules"]]
    except (SafetensorError, KeyError, ValueError, TypeError):
        raise ConfigError(f"field 'v_hack': {path} is not a direction file or is damaged; {make}") from None
    for name, r in modules:
        shape = shapes.get(plain(f"{name}.weight"))
        if shape is None or delta_size(shape, kind) != r:
            has = "has no such module" if shape is None else f"with adapter {kind} has {delta_size(shape, kind)} there"
            raise ConfigError(
                f"field 'v_hack': {path} is of another model or adapter: {name} with {r} numbers, but this model {has}; {make}"
            )
    share = head.get("validation", {}).get("frac_positive")
    if head.get("kind") in ("v_hack", "subspace") and not (share is not None and share > gate):
        found = (
            "carries no held-out validation"
            if share is None
            else f"aligns with held-out pairs in only {share:.0%} of modules"
        )
        raise ConfigError(
            f"field 'v_hack': {path} {found}, the gate is {gate:.0%} (field gate); add pairs and extract again"
        )
