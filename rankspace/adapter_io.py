"""A trained delta_S on disk: what it is, which weights it belongs to, and how to be sure of both.

    <directory>/delta_S.safetensors   one fp32 tensor [r] per module, named by it; metadata "rankspace", JSON (SavedDelta)
    <directory>/README.md             the model card (card.py)

U and Vh are not stored: the reader computes them from the base weights again. Two guards make that safe. The fingerprint
says that the weights are the same ones, bit for bit. The probes say that the bases are: singular vectors of nearly equal
singular values may come out turned on another machine, and delta_S would then mean another weight.

    probe[m, i] = y_iᵀ ΔW_m x_i,  ΔW = U diag(delta) Vh,  x_i and y_i of ±1 entries:  E probe² = ‖ΔW‖²  (Hutchinson)
    so that  sqrt(mean_i (probe − probe')²) / ‖delta‖  estimates  ‖ΔW − ΔW'‖ / ‖ΔW‖
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .adapter import Adapter, Form, attach
from .atomic_dir import new_directory
from .card import adapter_card
from .direction import Direction
from .errors import RankspaceError
from .lora import LoraAdapter
from .merge import split_flat
from .pissa import left
from .svd_cache import Progress, atomic_save, tensor_sha256
from .targets import Kind, delta_size

FORMAT = 1
FILE, CARD = "delta_S.safetensors", "README.md"
PROBES = 8
PROBE_TOLERANCE = 0.05  # bases rounded to bf16 differ by 0.004, unrelated ones by 1.4


@dataclass(frozen=True)
class SavedDelta:
    """A delta_S apart from its model. Maker: `save_adapter`, `read_delta`, `source.of_run`. Reader: `load_adapter`, export.

    flat: fp32 [sum r], CPU, in the order of `modules`. base_model: directory or hub name, as its maker called it.
    fingerprint: of the base (fingerprint.py); None when a run did not record it. probes: per module PROBES numbers, or
    None. trained: what is known of its making, JSON-able: arm, step, run_id, seed, projection, direction (kind, sha256).
    """

    flat: Tensor
    modules: list[tuple[str, int]]
    kind: Kind
    base_model: str
    fingerprint: str | None
    probes: list[list[float]] | None = None
    trained: dict[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """sha256 of the fp32 bytes of `flat`, hex: the checksum under which a run pushed it."""
        return tensor_sha256(self.flat)

    def facts(self) -> dict[str, Any]:
        """All but the vector, JSON-able."""
        kept = {key: value for key, value in self.__dict__.items() if key not in ("flat", "probes")}
        return {"format": FORMAT, "sha256": self.sha256, **kept}


def save_adapter(
    adapter: Adapter,
    directory: str | Path,
    base_model: str,
    direction: Direction | None = None,
    flat: Tensor | None = None,
    force: bool = False,
    **trained: Any,
) -> Path:
    """Write an adapter's delta_S with its card into a new directory; returns the safetensors file. Atomic.

    Args:
        base_model: directory or hub name of the base weights, for the reader to load.
        direction: what the gradient was projected against, if anything; its kind and hash are noted.
        flat: fp32 [sum r] in place of the adapter's own (DeepSpeed: `ds_hook.gather_delta(engine, adapter)`).
        force: replace an earlier export.
        trained: anything JSON-able to note, e.g. step=200, arm="projected".

    Raises:
        RankspaceError: a LoRA, NaN or Inf, a directory that is not empty or not writable.
    """
    if isinstance(adapter, LoraAdapter):
        raise RankspaceError(
            "save_adapter writes delta_S: a LoRA is saved by PEFT, peft_model.save_pretrained(directory)"
        )
    vector = (adapter.get_flat() if flat is None else flat).detach().float().cpu()
    notes = dict(trained) | ({} if direction is None else {"direction": describe(direction)})
    probes = [
        probe(part, linear._rankspace_U, linear._rankspace_Vh, linear.out_features)
        for part, linear in zip(split_flat(vector, adapter.modules), adapter._linears.values(), strict=True)
    ]
    saved = SavedDelta(vector, adapter.modules, adapter.kind, base_model, adapter.fingerprint, probes, notes)
    with new_directory(Path(directory), force, (FILE,)) as draft:
        write_delta(saved, draft)
    return Path(directory) / FILE


def write_delta(saved: SavedDelta, directory: Path) -> None:
    """Write file and card into an existing directory."""
    if not torch.isfinite(saved.flat).all():
        raise RankspaceError("delta_S holds NaN or Inf: the training run diverged, take an earlier checkpoint")
    tensors = {
        name: part.clone() for (name, _), part in zip(saved.modules, split_flat(saved.flat, saved.modules), strict=True)
    }
    head = saved.facts() | {"probes": saved.probes}
    atomic_save(tensors, directory / FILE, {"rankspace": json.dumps(head)})
    (directory / CARD).write_text(adapter_card(saved.facts()))


def read_delta(path: str | Path) -> SavedDelta:
    """Read what `save_adapter` wrote: the file, or the directory that holds it.

    Raises:
        RankspaceError: no file, not such a file, damaged (its own hash does not match); one line.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise RankspaceError(f"no adapter at {path}: give a {FILE} that rankspace wrote, or its directory")
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads((file.metadata() or {})["rankspace"])
            form, stated = head.pop("format"), head.pop("sha256")
            head["modules"] = [(str(name), int(r)) for name, r in head["modules"]]
            flat = torch.cat([file.get_tensor(name).reshape(-1) for name, _ in head["modules"]])
        saved = SavedDelta(flat=flat, **head)
        # refuses a vector of another length than its own list of modules
        split_flat(saved.flat, saved.modules)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise RankspaceError(f"{path} is no adapter of rankspace, or is damaged: save it again") from error
    if form != FORMAT:
        raise RankspaceError(f"{path} has format {form}, this version reads {FORMAT}: install a matching rankspace")
    if saved.sha256 != stated or flat.dtype != torch.float32:
        raise RankspaceError(f"{path} is damaged: its delta_S does not have the hash that it states; save it again")
    return saved


def load_adapter(
    path: str | Path,
    model: nn.Module,
    svd_cache_dir: Path | None = None,
    progress: Progress | None = None,
    form: Form = "factored",
    device: torch.device | str | None = None,
) -> Adapter:
    """Attach a saved adapter to its base model. The delta_S is bit-equal to the saved one.

    Args:
        path: file or directory that `save_adapter` or an export wrote. Others: as in `attach`.

    Raises:
        RankspaceError: as `read_delta` and `attach`; other modules, other weights, a basis that came out turned. The
            model is then left as it was.
    """
    saved = read_delta(path)
    require_modules(model, saved)
    adapter = attach(
        model, [name for name, _ in saved.modules], svd_cache_dir, progress, form, None, device, saved.kind
    )
    try:
        require_base(saved, adapter.fingerprint)
        linears = zip(split_flat(saved.flat, saved.modules), adapter._linears.values(), strict=True)
        require_bases(saved, [probe(d, m._rankspace_U, m._rankspace_Vh, m.out_features) for d, m in linears])
        adapter.set_flat(saved.flat)
    except RankspaceError:
        adapter.detach()
        raise
    return adapter


def require_modules(model: nn.Module, saved: SavedDelta) -> None:
    """Raise RankspaceError, naming the first, unless the model has each module as an nn.Linear of the right size."""
    have = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    order = [name for name in have if name in {n for n, _ in saved.modules}]
    for name, size in saved.modules:
        if name not in have:
            raise RankspaceError(f"the model has no {name}: the adapter belongs to {saved.base_model}")
        shape = (have[name].out_features, have[name].in_features)
        if delta_size(shape, saved.kind) != size:
            raise RankspaceError(f"{name} of shape {list(shape)} takes {delta_size(shape, saved.kind)} numbers, the adapter"
                                 f" has {size}: it belongs to {saved.base_model}")  # fmt: skip
    if order != [name for name, _ in saved.modules]:
        raise RankspaceError(f"the model has the adapter's modules in another order: it belongs to {saved.base_model}")


def require_base(saved: SavedDelta, fingerprint: str) -> None:
    """Raise RankspaceError unless the fingerprint of the weights at hand is the one it was trained on."""
    if saved.fingerprint is not None and saved.fingerprint != fingerprint:
        raise RankspaceError(
            f"the adapter was trained on other weights (fingerprint {saved.fingerprint[:12]}, this model has"
            f" {fingerprint[:12]}): load {saved.base_model} as it was then"
        )


def require_bases(saved: SavedDelta, probes: Sequence[Sequence[float]]) -> None:
    """Raise RankspaceError, naming the worst module, unless the bases at hand mean the same weights by this delta_S."""
    if saved.probes is None:
        return
    norms = [max(part.norm().item(), 1e-30) for part in split_flat(saved.flat, saved.modules)]
    errors = [
        math.sqrt(sum((a - b) ** 2 for a, b in zip(then, now, strict=True)) / len(now)) / norm
        for then, now, norm in zip(saved.probes, probes, norms, strict=True)
    ]
    worst = max(range(len(errors)), key=errors.__getitem__)
    # "not <=", so that a NaN fails
    if not errors[worst] <= PROBE_TOLERANCE:
        raise RankspaceError(
            f"the singular vectors of {saved.modules[worst][0]} came out turned on this machine (the weight change differs"
            f" by {errors[worst]:.0%}): use the SVD cache it was trained with (svd_cache_dir), or a merged export"
        )


def probe(delta: Tensor, U: Tensor | None, Vh: Tensor, rows: int) -> list[float]:
    """PROBES numbers y_iᵀ (added weight) x_i of one module, in float64; see the top of the file."""
    x, y = _signs("x", Vh.shape[1]), _signs("y", rows)
    basis = None if U is None else U.detach().cpu().double()
    inner = Vh.detach().cpu().double() @ x
    change = left(basis, delta.double().cpu(), rows) @ inner
    values: list[float] = (y * change).sum(dim=0).tolist()
    return values


def _signs(name: str, n: int) -> Tensor:
    """±1 [n, PROBES], the same on every machine and in every version of torch."""
    # a hash: torch's generators promise the same numbers neither across versions nor devices
    bits = hashlib.shake_256(f"rankspace-probe/{FORMAT}/{name}".encode()).digest(n)
    columns = torch.frombuffer(bytearray(bits), dtype=torch.uint8)[:, None] >> torch.arange(PROBES, dtype=torch.uint8)
    return (columns & 1).double() * 2 - 1


def describe(direction: Direction) -> dict[str, Any]:
    """What a card says of a direction: kind, sha256 of its vectors (fp32), and the hash of its pairs when known."""
    known: dict[str, Any] = {
        key: direction.metadata[key] for key in ("pairs_hash", "seed", "k") if key in direction.metadata
    }
    return {"kind": direction.kind, "sha256": tensor_sha256(direction.vectors.float()), **known}
