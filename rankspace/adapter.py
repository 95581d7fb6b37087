"""The AntiPaSTO adapter: every attention and MLP matrix turned in its own singular basis, only the scale trains.

    W0 = U · diag(S) · Vh                  frozen, full rank (svd_cache.py)
    y  = W0 x + b + U (delta ∘ (Vh x))     delta [r] fp32, trained, starts at zero          'factored'
    y  = (W0 + U diag(delta) Vh) x + b     the same function, merged once per step          'merged'

Identity at zero: W0 is never touched and the added term is an exact zero, so the output equals the base model's bit
for bit (in `factored` a base output of -0.0 may become 0.0, which compares equal and reaches no logit).

Gradient of delta, per module, over tokens t with input x_t and output gradient g_t:
    d_delta = sum_t (Uᵀ g_t) ∘ (Vh x_t)  =  rowsum( (Uᵀ G) ∘ Vh ),   G = sum_t g_t x_tᵀ
`factored` leaves it to autograd; `merged` picks the cheaper of the two forms by shape, for each micro-batch; `summed`
is `merged` with G added up over the micro-batches of a step in W's shape and dtype, and d_delta taken from it once.

Which form: `factored` costs two more products per module and keeps no copy of W0; `merged` costs one extra copy of the
adapted weights and one product with G per micro-batch, which pays off when tokens per micro-batch >> r: about the
cost of full fine-tuning, where `factored` takes 1.4 to 1.9 times that (128-wide Qwen3, 2k to 16k tokens, one core).
`summed` saves 2·out·in·r per module for each further micro-batch, keeps one more copy of the adapted weights (G), and
needs a loop that calls `fold` (no engine's backward hooks see its gradient). Rounded to bf16, `merged` and `summed` lose
the part of delta that is smaller than the last bit of W0; `factored` does not.

delta_S is an nn.Parameter of the nn.Linear itself (`<module>.delta_S`), so any optimizer or DeepSpeed engine finds it
in `model.parameters()`, and names of all other parameters stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .causal_lm import CausalLM
from .errors import RankspaceError
from .fingerprint import Fingerprint
from .gradient import MergedLinear, from_outer
from .merge import merge_into, split_flat
from .pissa import factors
from .sharded import fill, whole
from .svd_cache import Progress, svds
from .targets import DEFAULT_TARGETS, Kind, delta_size, hits

Form = Literal["factored", "merged", "summed"]
FORMS: tuple[str, ...] = get_args(Form)
PARAMETER = "delta_S"


class Adapter:
    """Handle on the delta_S of one model. Made by `attach`.

    modules: (name, r) in the order of the model's own modules; the order of every flat vector in this project.
    fingerprint: sha256 over names, shapes and weight values; the same on every machine and in each dtype that holds
        the values exactly.
    """

    def __init__(
        self, model: nn.Module, linears: dict[str, Adapted], fingerprint: str, form: Form, kind: Kind = "antipasto"
    ):
        self.model = model
        self.kind = kind
        self.fingerprint = fingerprint
        self.form = form
        self.version = 0
        self._linears = linears
        self._enabled = True
        self._frozen_before: dict[str, bool] = {}
        self.parameter = PARAMETER  # the last part of its parameters' names

    @property
    def modules(self) -> list[tuple[str, int]]:
        shapes = {name: (linear.out_features, linear.in_features) for name, linear in self._linears.items()}
        return [(name, delta_size(shape, self.kind)) for name, shape in shapes.items()]

    def parameters(self) -> list[nn.Parameter]:
        """delta_S of each module, in order: fp32 [r], unless an engine has cast or partitioned them since."""
        return [linear.get_parameter(PARAMETER) for linear in self._linears.values()]

    def basis(self, module: str) -> tuple[Tensor | None, Tensor]:
        """U [out, r] (None for pissa_freeze_a) and Vh [r, in] of an adapted module, as they lie on the model."""
        linear = self._linears[module]
        return linear._rankspace_U, linear._rankspace_Vh

    def named_delta(self) -> dict[str, Tensor]:
        """Module name -> fp32 [r] copy of its delta_S on the CPU."""
        modules = self.modules
        return dict(zip((name for name, _ in modules), split_flat(self.get_flat(), modules), strict=True))

    def get_flat(self) -> Tensor:
        """All delta_S in module order, fp32 [sum r], a copy on the CPU. Under FSDP2 every rank must call it.

        Under ZeRO-3, or a DeepSpeed engine in bf16 mode, use `ds_hook.gather_delta`: the fp32 values live there.

        Raises:
            RankspaceError: the parameters are partitioned by ZeRO-3.
        """
        self._require_whole()
        return torch.cat([whole(p.detach()).float().cpu().flatten() for p in self.parameters()])

    @torch.no_grad()
    def set_flat(self, flat: Tensor) -> None:
        """Copy a flat vector [sum r] into the delta_S. Under DeepSpeed use `ds_hook.scatter_delta`.

        Raises:
            RankspaceError: wrong length, NaN or Inf, or parameters partitioned by ZeRO-3.
        """
        self._require_whole()
        if not torch.isfinite(flat).all():
            raise RankspaceError("delta_S holds NaN or Inf: the training run diverged, take an earlier checkpoint")
        for parameter, part in zip(self.parameters(), split_flat(flat, self.modules), strict=True):
            fill(parameter, part)
        self.refresh()

    def refresh(self) -> None:
        """Say that delta_S changed: the merged forms build their weights anew at the next forward. Free when factored.

        `set_flat` and ProjectionHook.after_step call it. A loop of your own calls it after each optimizer step (on the
        CPU the merged forms also notice by themselves).
        """
        self.version += 1

    @torch.no_grad()
    def merge(self) -> None:
        """Build all merged weights now, in place. One host sync; nothing when they are fresh, factored or partitioned.

        Raises:
            RankspaceError: delta_S holds NaN or Inf.
        """
        fresh = all(linear._rankspace.version == self.version for linear in self._linears.values())
        if fresh or self.form == "factored" or not self._whole():
            return
        # one look for all: looks from the host at each were part of what made a step as slow as LoRA (LOG 2026-11-24)
        deltas = [p.detach().float() for p in self.parameters()]
        if not torch.isfinite(torch.cat(deltas)).all():
            raise RankspaceError("delta_S holds NaN or Inf: the training run diverged, take an earlier checkpoint")
        for linear, delta in zip(self._linears.values(), deltas, strict=True):
            _remerge(linear, delta)

    @torch.no_grad()
    def fold(self) -> Tensor:
        """The `summed` form's gradient of delta_S since the last call, fp32 [sum r] on the model's device; G is dropped.

        Raises:
            RankspaceError: another form, or a module without a gradient.
        """
        if self.form != "summed":
            raise RankspaceError(f"fold belongs to the form 'summed', this adapter is {self.form!r}")
        parts = []
        for name, linear in self._linears.items():
            merged = linear._rankspace.merged
            G = None if merged is None else merged.grad
            if merged is None or G is None:
                raise RankspaceError(f"{name} has no gradient: call backward before fold, with the adapter enabled")
            parts.append(from_outer(G, linear._rankspace_U, linear._rankspace_Vh).float())
            merged.grad = None
        return torch.cat(parts)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it the model is the base model, exactly (reference log-probs)."""
        self._enabled = False
        try:
            yield
        finally:
            self._enabled = True

    def use(self, form: Form) -> None:
        """Compute the same function in another form from now on.

        Raises:
            RankspaceError: unknown form.
        """
        if form not in FORMS:
            raise RankspaceError(f"form {form!r} is unknown: choose one of {', '.join(FORMS)}")
        self.form = form
        run = _factored_forward if form == "factored" else _merged_forward
        for linear in self._linears.values():
            linear.forward = run.__get__(linear)  # type: ignore[method-assign]  # on the instance: the class stays
            # made anew: `summed` wants a leaf that gathers a gradient, `merged` one that gathers none
            linear._rankspace.merged = linear._rankspace.used_delta = linear._rankspace.version = None

    def require_fresh(self) -> None:
        """Raise RankspaceError if the merged weights in use belong to an older delta_S (one host sync)."""
        merged = {name: (one._rankspace.used_delta, one.delta_S) for name, one in self._linears.items()}
        stale = {
            name: (used != now.detach().to(used)).any() for name, (used, now) in merged.items() if used is not None
        }
        if not stale:
            return
        first = next(iter(stale.values()))
        found = torch.stack([one.to(first.device) for one in stale.values()]).tolist()
        if any(found):
            name = list(stale)[found.index(True)]
            raise RankspaceError(
                f"{name}: merged weights are older than delta_S; call adapter.refresh() after each step"
            )

    def detach(self) -> None:
        """Give the model back as it was before `attach`: parameters, buffers, forward and requires_grad."""
        for linear in self._linears.values():
            del linear.forward, linear._rankspace
            del linear._parameters[PARAMETER]
            for buffer in ("_rankspace_U", "_rankspace_Vh"):
                del linear._buffers[buffer]
                linear._non_persistent_buffers_set.discard(buffer)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._frozen_before.get(name, parameter.requires_grad))
        self._linears = {}

    def _whole(self) -> bool:
        """False under ZeRO-3, where a module's weight exists only during its own forward."""
        return not any(hasattr(linear.weight, "ds_id") for linear in self._linears.values())

    def _require_whole(self) -> None:
        for (name, _), parameter in zip(self.modules, self.parameters(), strict=True):
            if parameter.numel() == 0:
                raise RankspaceError(
                    f"{name}.{self.parameter} is partitioned by ZeRO-3: use rankspace.ds_hook.gather_delta"
                )


class _State:
    """Per-module state that is not a tensor of the model: the base forward, and the merged weight when there is one."""

    def __init__(self, adapter: Adapter, base_forward: Callable[[Tensor], Tensor]):
        self.adapter = adapter
        self.base_forward = base_forward
        self.merged: Tensor | None = None
        self.used_delta: Tensor | None = None
        self.version: int | None = None


class Adapted(nn.Linear):
    """What `attach` adds to an nn.Linear, for type checkers; no object is of this class."""

    delta_S: nn.Parameter
    _rankspace: _State
    _rankspace_U: Tensor | None
    _rankspace_Vh: Tensor


def attach(
    model: nn.Module,
    targets: Sequence[str] | None = None,
    svd_cache_dir: Path | None = None,
    progress: Progress | None = None,
    form: Form = "factored",
    basis_dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    kind: Kind = "antipasto",
) -> Adapter:
    """Put a zero delta_S on every matching nn.Linear and freeze everything else.

    Call it before `deepspeed.initialize`. Afterwards only delta_S has requires_grad.

    Args:
        model: any HF causal LM (or nn.Module), dense weights of a floating dtype.
        targets: module names or globs. Without a dot they match the last part of the name ("q_proj", "in_proj_*"),
            with a dot the whole name ("model.layers.1?.mlp.*"). None: DEFAULT_TARGETS, which cover Llama, Qwen3 and
            Qwen3.5. lm_head, embeddings and vision or audio towers are never adapted.
        svd_cache_dir: where to keep SVDs (svd_cache.py); None computes them each time.
        progress: called as progress(done, total, name) after each module.
        form: 'factored', 'merged' or 'summed', see the top of this file.
        basis_dtype: dtype of U and Vh on the model; None takes the weight's.
        device: where to compute the SVD; None means the GPU when there is one.
        kind: 'antipasto', or 'pissa_freeze_a' (pissa.py), whose delta_S is a matrix [out, k] kept flat.

    Raises:
        RankspaceError: nothing matches, a pattern matches nothing, already attached, ZeRO-3 weights, quantised weights.
    """
    if form not in FORMS:
        raise RankspaceError(f"form {form!r} is unknown: choose one of {', '.join(FORMS)}")
    linears = _find(model, targets)
    for name, linear in linears.items():
        _check(name, linear)
    bases = {}
    fingerprint = Fingerprint(kind)
    found = svds([linear.weight for linear in linears.values()], svd_cache_dir, device)
    for done, ((name, linear), basis) in enumerate(zip(linears.items(), found, strict=True), start=1):
        bases[name] = basis
        fingerprint.add(name, linear.weight.shape, basis.content)
        if progress is not None:
            progress(done, len(linears), name)
    adapter = Adapter(model, cast("dict[str, Adapted]", linears), fingerprint.hexdigest(), form, kind)
    # detach gives back what was trainable before, not everything: a caller may have frozen parts on purpose
    adapter._frozen_before = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    for name, linear in linears.items():  # only now is the model changed: an error above leaves it as it was
        _equip(adapter, linear, *factors(bases[name], kind), basis_dtype or linear.weight.dtype)
    adapter.use(form)  # the forward is an instance attribute: hooks, names and the class stay as they are
    return adapter


def detach(adapter: Adapter) -> None:
    """Undo `attach`."""
    adapter.detach()


def _find(model: nn.Module, targets: Sequence[str] | None) -> dict[str, nn.Linear]:
    patterns = list(DEFAULT_TARGETS if targets is None else targets)
    output = cast(CausalLM, model).get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found: dict[str, nn.Linear] = {}
    used: set[str] = set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or module is output:
            continue
        if matched := hits(name, patterns):
            found[name] = module
            used.update(matched)
    if not found:
        raise RankspaceError(
            f"no nn.Linear of {type(model).__name__} matches the targets {patterns}: give targets that name the model's"
            " own attention and MLP matrices (see model.named_modules()); lm_head and embeddings are never adapted"
        )
    if targets is not None and (idle := [p for p in patterns if p not in used]):
        raise RankspaceError(f"target {idle[0]!r} matches no nn.Linear of {type(model).__name__}: correct or remove it")
    return found


def _check(name: str, linear: nn.Linear) -> None:
    if PARAMETER in linear._parameters:
        raise RankspaceError(f"{name} already has an adapter: detach it first")
    if hasattr(linear.weight, "ds_id"):
        raise RankspaceError(
            f"{name} is already partitioned by ZeRO-3: attach before deepspeed.initialize or zero.Init"
        )
    if linear.weight.is_meta or not linear.weight.is_floating_point() or linear.weight.ndim != 2:
        raise RankspaceError(f"{name}.weight is {linear.weight.dtype}: load the model unquantised and with its weights")


def _equip(adapter: Adapter, linear: nn.Linear, U: Tensor | None, Vh: Tensor, dtype: torch.dtype) -> None:
    where, size = linear.weight.device, delta_size((linear.out_features, linear.in_features), adapter.kind)
    # fp32 whatever the weights are: AdamW's steps of 1e-3 would vanish in bf16 beside a delta of 1
    linear.register_parameter(PARAMETER, nn.Parameter(torch.zeros(size, dtype=torch.float32, device=where)))
    # not persistent: a checkpoint of the model stays that of the base, and bases come from the SVD cache
    linear.register_buffer("_rankspace_U", None if U is None else U.to(where, dtype), persistent=False)
    linear.register_buffer("_rankspace_Vh", Vh.to(where, dtype), persistent=False)
    cast(Adapted, linear)._rankspace = _State(adapter, linear.forward)


def _factored_forward(self: Adapted, x: Tensor) -> Tensor:
    y = self._rankspace.base_forward(x)
    if not self._rankspace.adapter._enabled:
        return y
    inner = F.linear(x.to(self._rankspace_Vh.dtype), self._rankspace_Vh)
    if self._rankspace_U is None:  # pissa_freeze_a: delta is a whole matrix B, its left factor
        return y + F.linear(inner, self.delta_S.view(self.out_features, -1).to(inner.dtype)).to(y.dtype)
    # bf16 · fp32 promotes to fp32: the gradient of delta is then summed over tokens in fp32
    scaled = (inner * self.delta_S).to(self._rankspace_U.dtype)
    return y + F.linear(scaled, self._rankspace_U).to(y.dtype)


def _merged_forward(self: Adapted, x: Tensor) -> Tensor:
    state = self._rankspace
    if not state.adapter._enabled:
        return state.base_forward(x)
    if not torch.compiler.is_compiling():  # a compiled layer gets its weights from Adapter.merge, before its forward
        _freshen(self)
    weight = state.merged
    assert weight is not None  # _freshen or Adapter.merge has made it
    if state.adapter.form == "summed":
        return F.linear(x, weight, self.bias)  # a leaf: autograd adds G up in its .grad
    y: Tensor = MergedLinear.apply(  # type: ignore[no-untyped-call]  # torch has not annotated `apply`
        x, self.delta_S, weight, self.bias, self._rankspace_U, self._rankspace_Vh
    )
    return y


@torch.no_grad()
def _freshen(self: Adapted) -> None:
    state = self._rankspace
    if state.version != state.adapter.version:
        state.adapter.merge()
    if state.version != state.adapter.version or _moved_on_cpu(self):
        _remerge(self, self.delta_S.detach().float())


def _remerge(self: Adapted, delta: Tensor) -> None:
    """Put W0 + U diag(delta) Vh in the module's merged weight."""
    state = self._rankspace
    if state.merged is None or state.used_delta is None:  # they are made together
        state.merged = torch.empty_like(self.weight, requires_grad=False)
        # `merged` finds the gradient of delta by itself: one of the whole weight would cost its memory for nothing
        state.merged.requires_grad_(state.adapter.form == "summed")
        state.used_delta = torch.empty_like(delta)
    state.used_delta.copy_(delta)
    state.version = state.adapter.version
    merge_into(state.merged, self.weight, self._rankspace_U, delta, self._rankspace_Vh)


def _moved_on_cpu(self: Adapted) -> bool:
    """Comparing r numbers is free on the CPU, so a forgotten refresh() cannot hurt there; on a GPU it costs a sync."""
    used = self._rankspace.used_delta
    return self.delta_S.device.type == "cpu" and (used is None or not torch.equal(used, self.delta_S.float()))
