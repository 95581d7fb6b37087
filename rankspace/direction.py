"""v_hack: the direction in delta_S along which the model gets likelier to cheat, and its controls.

    g_hack[p]  = grad of NLL(hack_p)  wrt delta_S at delta_S = 0,  NLL = mean over the completion's tokens
    g_clean[p] = the same for the clean completion of pair p
    d[p, m]    = g_hack[p, m] − g_clean[p, m]                      per module m
    v_hack[m]  = unit( mean_p d[p, m] )

    random     v[m] = unit(N(0, I)), seeded
    shuffled   v_hack from the same pairs with hack and clean swapped in a random half of them, seeded
    subspace   top-k right singular vectors of the matrix d[:, m] (not centred), each turned towards mean_p d[p, m]

Validation on held-out pairs: a[p, m] = cos(d[p, m], v[m]), cos_align[m] = mean_p a[p, m]. Reported over modules:
median (healthy > 0.3), mean (target > 0.2) and the fraction of cos_align[m] > 0, which is the gate: at or below 0.5
training refuses to start, as a random direction would do as well. Null band: 1/sqrt(r) is the standard deviation of
one a[p, m] for a random v; that of its mean over pairs is at most as large.

Model in eval mode, one backward per completion. Identity: swapping hack and clean of every pair gives −v_hack.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .adapter import Adapter
from .errors import RankspaceError
from .logprobs import completion_logprobs
from .pairs import TokenizedPair
from .projection import Layout, unit_rows
from .svd_cache import atomic_save

FORMAT = 1
GATE = 0.5
Kind = Literal["v_hack", "random", "shuffled", "subspace", "warmup"]
CONTROLS = ("random", "shuffled", "warmup")  # no gate: they are not held to be the hack


@dataclass(frozen=True)
class PairGradients:
    """Gradients of completion NLL wrt delta_S, fp32 on the CPU. hack, clean: [P, sum r], rows in pair order."""

    hack: Tensor
    clean: Tensor
    modules: list[tuple[str, int]]

    @property
    def difference(self) -> Tensor:
        """d [P, sum r]."""
        return self.hack - self.clean


@dataclass(frozen=True)
class Direction:
    """Unit vectors per module. vectors: fp32 [sum r], or [k, sum r] for kind 'subspace', in the order of `modules`."""

    kind: Kind
    vectors: Tensor
    modules: list[tuple[str, int]]
    metadata: dict[str, Any] = field(default_factory=dict)

    def require(self, modules: Sequence[tuple[str, int]]) -> None:
        """Raise RankspaceError, naming the first difference, unless this direction belongs to these modules."""
        for i, (name, r) in enumerate(modules):
            if i >= len(self.modules):
                raise RankspaceError(f"v_hack has no module {name}: extract it again for this model and these targets")
            other, other_r = self.modules[i]
            if (other, other_r) != (name, r):
                raise RankspaceError(
                    f"v_hack was made for another model: module {i} is {other} with r={other_r}, the adapter has {name}"
                    f" with r={r}; run python -m rankspace extract on this model"
                )
        if len(self.modules) > len(modules):
            name = self.modules[len(modules)][0]
            raise RankspaceError(
                f"v_hack has module {name}, the adapter has not: attach with the targets it was made for"
            )


def extract_gradients(
    model: nn.Module,
    adapter: Adapter,
    pairs: Sequence[TokenizedPair],
    progress: Callable[[int, int, str], None] | None = None,
    at_zero: bool = True,
) -> PairGradients:
    """Per-pair gradients of both branches, at delta_S = 0, in eval mode (the mode is put back afterwards).

    Args:
        progress: called as progress(done, total, pair id).
        at_zero: False takes them at the present delta_S instead (to refresh v_hack during training). `.grad` is not
            touched, so this may run between optimizer steps under ZeRO 0, 1 and 2; ZeRO-3 partitions delta_S.

    Raises:
        RankspaceError: no pairs, a delta_S that is not zero, or a gradient that is not finite.
    """
    if not pairs:
        raise RankspaceError("no pairs to extract from: give a file with 60-80 contrastive pairs")
    if at_zero and torch.any(adapter.get_flat()):
        raise RankspaceError("v_hack is defined at delta_S = 0: attach a fresh adapter before extracting")
    was_training = model.training
    model.eval()
    try:
        rows = []
        for done, pair in enumerate(pairs, start=1):
            rows.append([_nll_gradient(model, adapter, ids, pair) for ids in (pair.hack_ids, pair.clean_ids)])
            if progress is not None:
                progress(done, len(pairs), str(pair.id))
    finally:
        model.train(was_training)
    hack, clean = (torch.stack(side) for side in zip(*rows, strict=True))
    return PairGradients(hack, clean, adapter.modules)


def completion_nll(model: nn.Module, ids: Sequence[int], start: int) -> Tensor:
    """Mean NLL of ids[start:] given what comes before, in nats per token, fp32 scalar."""
    if not 0 < start < len(ids):
        raise RankspaceError(f"a completion must start inside its {len(ids)} tokens and after one, not at {start}")
    device = next(model.parameters()).device
    tokens = torch.tensor([list(ids)], device=device)
    logits = model(input_ids=tokens, use_cache=False).logits[0, start - 1 : -1]
    logprobs, _ = completion_logprobs(logits, tokens[0, start:])
    return -logprobs.mean()


def _nll_gradient(model: nn.Module, adapter: Adapter, ids: Sequence[int], pair: TokenizedPair) -> Tensor:
    grads = torch.autograd.grad(
        completion_nll(model, ids, pair.start), adapter.parameters(), allow_unused=True, materialize_grads=True
    )
    flat = torch.cat([g.detach().float().cpu().flatten() for g in grads])
    if not torch.isfinite(flat).all():
        raise RankspaceError(f"pair {pair.id} gives a gradient with NaN or Inf: load the model in fp32 or bf16")
    return flat


def hack_direction(gradients: PairGradients, metadata: dict[str, Any] | None = None) -> Direction:
    """v_hack from per-pair gradients.

    Raises:
        RankspaceError: the mean difference of a module is zero.
    """
    return _mean_direction(gradients.difference, gradients.modules, "v_hack", metadata)


def shuffled_direction(gradients: PairGradients, seed: int, metadata: dict[str, Any] | None = None) -> Direction:
    """Control: the same pairs, hack and clean swapped in a random half (P // 2 pairs, chosen by `seed`)."""
    generator = torch.Generator().manual_seed(seed)
    n = len(gradients.hack)
    sign = torch.ones(n)
    sign[torch.randperm(n, generator=generator)[: n // 2]] = -1.0
    meta = {**(metadata or {}), "seed": seed, "n_flipped": n // 2}
    return _mean_direction(sign[:, None] * gradients.difference, gradients.modules, "shuffled", meta)


def random_direction(modules: Sequence[tuple[str, int]], seed: int) -> Direction:
    """Control: an isotropic random unit vector per module, the same for the same seed and modules."""
    layout = Layout.of(modules)
    noise = torch.randn(layout.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Direction("random", _unit(noise, layout), list(modules), {"seed": seed})


def orthogonalised(direction: Direction, against: Direction) -> Direction:
    """Control: the direction without its component along `against` (of one vector per module), unit again.

    u[m] = unit( d[m] − (d[m]·v[m]) v[m] ). What a random direction shares with v_hack by chance, and a label-shuffled one
    by construction (cosines up to 0.9 in single modules), is gone; the kind stays.

    Raises:
        RankspaceError: other modules, a subspace, or a module where nothing is left (rank 1, or both the same).
    """
    against.require(direction.modules)
    if direction.vectors.ndim != 1 or against.vectors.ndim != 1:
        raise RankspaceError("only directions of one vector per module can be made orthogonal to one another")
    layout = Layout.of(direction.modules)
    d, v = (unit_rows(layout.pad(one.vectors), layout.names) for one in (direction, against))
    left = d - (d * v).sum(dim=-1, keepdim=True) * v
    gone = left.norm(dim=-1) < 1e-6
    if gone.any():
        raise RankspaceError(f"the direction of {layout.names[int(gone.nonzero()[0, 0])]} lies wholly along v_hack")
    return replace(
        direction, vectors=_unit(layout.unpad(left), layout), metadata={**direction.metadata, "orthogonal": True}
    )


def subspace_direction(gradients: PairGradients, k: int, metadata: dict[str, Any] | None = None) -> Direction:
    """Top-k right singular vectors of the per-pair differences, per module; vectors [k, sum r], orthonormal.

    Raises:
        RankspaceError: k is not in 2 .. min(P, smallest r − 1), or a module's differences span fewer dimensions.
    """
    layout = Layout.of(gradients.modules)
    pairs, smallest = len(gradients.hack), min(layout.ranks)
    if not 2 <= k <= min(pairs, smallest - 1):
        raise RankspaceError(
            f"--k {k} must be between 2 and {min(pairs, smallest - 1)} ({pairs} pairs, smallest r {smallest})"
        )
    parts = []
    for (name, _), d in zip(
        gradients.modules, torch.split(gradients.difference.double(), list(layout.ranks), dim=1), strict=True
    ):
        top = leading(d, k)
        if top is None:
            raise RankspaceError(
                f"the pair differences of {name} span fewer than {k} dimensions: lower --k or add pairs"
            )
        parts.append(top)
    return Direction("subspace", torch.cat(parts, dim=1).float(), gradients.modules, {**(metadata or {}), "k": k})


def leading(rows: Tensor, k: int) -> Tensor | None:
    """Top-k right singular vectors of float64 rows [n, r], not centred, each turned towards their mean: [k, r].

    None where the rows span fewer dimensions.
    """
    _, S, Vh = torch.linalg.svd(rows, full_matrices=False)
    if S[k - 1] <= 1e-10 * S[0].clamp_min(1e-300):
        return None
    # the sign of a singular vector is arbitrary, and a one-sided projection takes away one side only
    found: Tensor = torch.where(Vh[:k] @ rows.mean(dim=0) < 0, -1.0, 1.0)[:, None] * Vh[:k]
    return found


def _mean_direction(
    differences: Tensor, modules: Sequence[tuple[str, int]], kind: Kind, metadata: dict[str, Any] | None
) -> Direction:
    layout = Layout.of(modules)
    return Direction(kind, _unit(differences.double().mean(dim=0), layout), list(modules), dict(metadata or {}))


def _unit(flat: Tensor, layout: Layout) -> Tensor:
    return layout.unpad(unit_rows(layout.pad(flat), layout.names)).float()


def validate(direction: Direction, heldout: PairGradients) -> dict[str, Any]:
    """Alignment of held-out pairs with a direction (its first vector, for a subspace). See the top of the file.

    Returns:
        JSON-able: `n_pairs`, `n_modules`, `median`, `mean`, `frac_positive` (over modules), `frac_positive_pairs`
        (over all a[p, m]), `null_std_mean`, `modules` (name, r, cos_align, cos_std over pairs, null_std each).

    Raises:
        RankspaceError: the gradients belong to other modules.
    """
    direction.require(heldout.modules)
    layout = Layout.of(direction.modules)
    v = direction.vectors if direction.vectors.ndim == 1 else direction.vectors[0]
    v_rows = unit_rows(layout.pad(v), layout.names)
    d = layout.pad(heldout.difference)
    norms = d.norm(dim=-1)
    cos = torch.einsum("pmr,mr->pm", d, v_rows) / norms.clamp_min(1e-300)  # a zero difference has cosine 0
    aligned, null = cos.mean(dim=0), layout.null_std()
    rows = zip(
        layout.names, layout.ranks, aligned.tolist(), cos.std(dim=0, correction=0).tolist(), null.tolist(), strict=True
    )
    return {
        "n_pairs": len(cos),
        "n_modules": len(layout.names),
        "median": aligned.quantile(0.5).item(),
        "mean": aligned.mean().item(),
        "frac_positive": (aligned > 0).double().mean().item(),
        "frac_positive_pairs": (cos > 0).double().mean().item(),
        "null_std_mean": null.mean().item(),
        "modules": [dict(zip(("name", "r", "cos_align", "cos_std", "null_std"), row, strict=True)) for row in rows],
    }


def require_gate(validation: dict[str, Any], gate: float = GATE) -> None:
    """Raise RankspaceError unless more than a share `gate` of the modules aligns with v on held-out pairs."""
    share = validation["frac_positive"]
    # "not >", so that a NaN fails
    if not share > gate:
        raise RankspaceError(
            f"v_hack fails its gate: cos_align > 0 in {share:.0%} of modules on {validation['n_pairs']} held-out pairs,"
            f" needs more than {gate:.0%}; add pairs or make hack and clean differ in the cheat alone"
        )


def require_validated(direction: Direction, gate: float = GATE) -> None:
    """What a trainer calls before it starts: a v_hack or subspace needs its validation numbers, and above the gate.

    The controls random and shuffled pass: they are meant to fail. So does a warm-up's subspace: it is not of the hack.
    """
    if direction.kind in CONTROLS:
        return
    validation = direction.metadata.get("validation")
    if validation is None:
        raise RankspaceError("v_hack carries no held-out validation: extract it with held-out pairs in the file")
    require_gate(validation, gate)


def save_direction(direction: Direction, path: str | Path) -> None:
    """Write a direction as safetensors: one tensor per module ([r] or [k, r]), the rest as JSON metadata. Atomic."""
    ranks = [r for _, r in direction.modules]
    parts = torch.split(direction.vectors, ranks, dim=-1)
    tensors = {name: part.contiguous() for (name, _), part in zip(direction.modules, parts, strict=True)}
    head = {"format": FORMAT, "kind": direction.kind, "modules": direction.modules, **direction.metadata}
    atomic_save(tensors, Path(path), {"rankspace": json.dumps(head)})


def load_direction(
    path: str | Path, modules: Sequence[tuple[str, int]] | None = None, fingerprint: str | None = None
) -> Direction:
    """Read a direction and check that it belongs to the adapter.

    Args:
        modules: the adapter's; None skips the check.
        fingerprint: the adapter's; when given, a v_hack made from other weights is refused too.

    Raises:
        RankspaceError: no file, not such a file, other modules (names the first mismatch), other weights; one line.
    """
    path = Path(path)
    if not path.is_file():
        raise RankspaceError(
            f"no v_hack at {path}: make it with python -m rankspace extract --model M --pairs P --out {path}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads((file.metadata() or {})["rankspace"])
            names = [(str(name), int(r)) for name, r in head.pop("modules")]
            vectors = torch.cat([file.get_tensor(name) for name, _ in names], dim=-1)
            form, kind = head.pop("format"), head.pop("kind")
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise RankspaceError(
            f"{path} is not a v_hack file or is damaged: run python -m rankspace extract again"
        ) from error
    if form != FORMAT:
        raise RankspaceError(
            f"{path} has format {form}, this version reads {FORMAT}: run python -m rankspace extract again"
        )
    direction = Direction(kind, vectors, names, head)
    if modules is not None:
        direction.require(modules)
    made_from = head.get("fingerprint")
    if fingerprint is not None and made_from is not None and made_from != fingerprint:
        raise RankspaceError(
            f"{path} was made from other weights of the same shape: run python -m rankspace extract on this model"
        )
    return direction


def with_metadata(direction: Direction, **metadata: Any) -> Direction:
    """The same direction with entries added to its metadata."""
    return replace(direction, metadata={**direction.metadata, **metadata})
