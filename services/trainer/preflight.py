"""What can be known to be wrong before torch is loaded: files, the direction against the model, Redis.

Each check raises a ConfigError of one line. Nothing is written before all of them pass.
"""

from __future__ import annotations

import json
from pathlib import Path

from common.errors import ConfigError
from common.settings import Mechanism, TrainerSettings
from rankspace.errors import RankspaceError
from rankspace.pairs import load_pairs
from rankspace.targets import Kind, delta_size
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
    alarm.check(s)
    if s.pairs_mechanism is not None:
        check_pairs(s.pairs, s.pairs_mechanism)
    check_modules(s.model, shapes)
    if s.direction == "v_hack" and s.v_hack is not None:  # TrainerSettings refuses one without the other
        check_direction(s.v_hack, shapes, s.gate, s.adapter)


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
    """Name -> shape of every tensor in a model folder, from the files' headers."""
    from safetensors import SafetensorError, safe_open

    folder = Path(model)
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        raise ConfigError(
            f"field 'model': {model} has no config.json and *.safetensors; give a local Hugging Face model folder"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="np") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ConfigError(f"field 'model': {path} is damaged ({error}); fetch it again") from None
    return shapes


def check_modules(model: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Some 2-d weight has the name of an attention or MLP matrix that the adapter knows."""
    from rankspace.targets import DEFAULT_TARGETS, hits

    names = [
        name.removesuffix(".weight") for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2
    ]
    if not any(hits(name) for name in names):
        raise ConfigError(
            f"field 'model': {model} has no module that the adapter knows ({', '.join(DEFAULT_TARGETS)}); it has "
            f"{', '.join(names[:3])} ...; give a Llama- or Qwen-like model"
        )


def check_direction(path: Path, shapes: dict[str, tuple[int, ...]], gate: float, kind: Kind = "antipasto") -> None:
    """The direction file exists, is whole, passes its gate, and names weights that this model has."""
    from safetensors import SafetensorError, safe_open

    make = f"make it with `python -m rankspace extract --out {path}`"
    if not path.is_file():
        raise ConfigError(f"field 'v_hack': no file {path}; {make}")
    try:
        with safe_open(path, framework="np") as file:
            head = json.loads((file.metadata() or {})["rankspace"])
        modules = [(str(name), int(r)) for name, r in head["modules"]]
    except (SafetensorError, KeyError, ValueError, TypeError):
        raise ConfigError(f"field 'v_hack': {path} is not a direction file or is damaged; {make}") from None
    for name, r in modules:
        shape = shapes.get(f"{name}.weight")
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
