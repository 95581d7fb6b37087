"""LoRA with A frozen, of the PEFT library, under the same projection: only B trains, and B is what gets a direction.

    y  = W0 x + s · B (A x)                 A [k, in] frozen as PEFT drew it, B [out, k] trained, from zero; s = alpha / k
    v  = unit( mean grad_B NLL(hack) − mean grad_B NLL(clean) )       at B = 0
    g' = the projection of projection.py, of B's gradient [out · k] row-major, module by module

One direction per module, found at B = 0, means the same thing all through training because A stays: the change of W is
s · B · A, linear in B. With A trained as well it would not be, so `attach_lora` freezes A.

Identity at zero: B = 0 is the base model. v belongs to the A that it was found with: A is part of the fingerprint. Draw it
from a seed and keep it (`peft_model.save_pretrained` before training), or make v anew.

Null band: a direction of out · k numbers, of which the gradient of one token fills rank one. Compare with the `random`
control, not with 1/sqrt(r).

Sources: Hu et al. 2021 (LoRA); Zhang et al. 2023 (LoRA-FA) for the frozen A.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from .adapter import Adapter, Form
from .errors import RankspaceError
from .fingerprint import Fingerprint
from .svd_cache import tensor_sha256


class LoraAdapter(Adapter):
    """Handle on the B matrices of one PEFT model. Made by `attach_lora`; goes where an `Adapter` goes: `extract_gradients`,
    the directions, `GradientHook`, `hook_into`, `trl.ProjectionCallback`.

    modules: (name, out · k) in the order of the model's own modules; names are those of PEFT. Saving, merging and serving
    stay PEFT's own (`save_pretrained`, `merge_and_unload`).
    """

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module], name: str, fingerprint: str):
        super().__init__(model, {}, fingerprint, "factored")
        self.parameter = f"lora_B.{name}.weight"
        self._layers, self._name = layers, name

    @property
    def modules(self) -> list[tuple[str, int]]:
        return [(module, b.numel()) for module, b in zip(self._layers, self.parameters(), strict=True)]

    def parameters(self) -> list[nn.Parameter]:
        """B of each module, in order: [out, k], in PEFT's dtype (fp32 unless autocast_adapter_dtype=False)."""
        return [layer.get_parameter(self.parameter) for layer in self._layers.values()]

    def basis(self, module: str) -> tuple[None, Tensor]:
        """None and s · A [k, in]: with delta = B the change of the weight is B · (s · A), as `merged_weight` has it."""
        layer = cast(Any, self._layers[module])
        return None, layer.lora_A[self._name].weight.detach() * layer.scaling[self._name]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it the model is the base model, exactly (reference log-probs)."""
        with cast(Any, self.model).disable_adapter():
            yield

    def require_fresh(self) -> None:
        """Nothing to check: PEFT computes with B itself."""

    def use(self, form: Form) -> None:
        """Only 'factored' is there."""
        if form != "factored":
            raise RankspaceError(f"form {form!r} belongs to rankspace.attach: LoRA is computed by PEFT, as 'factored'")

    def detach(self) -> None:
        """Let A train again; the layers are PEFT's to take away (`peft_model.unload()`)."""
        for layer in self._layers.values():
            cast(Any, layer).lora_A[self._name].weight.requires_grad_(True)


def attach_lora(model: nn.Module, name: str = "default") -> LoraAdapter:
    """Freeze everything but the B matrices of a PEFT model's LoRA layers, and hand them out as an adapter.

    Args:
        model: from `peft.get_peft_model(base, LoraConfig(...))`, before the optimizer or trainer is made.
        name: PEFT's name of the adapter.

    Raises:
        RankspaceError: no LoRA layers of that name, DoRA, or a bias of LoRA's own: what trains would be more than B.
    """
    layers = {
        module: layer
        for module, layer in model.named_modules()
        if hasattr(layer, "base_layer") and name in getattr(layer, "lora_B", {})
    }
    if not layers:
        raise RankspaceError(
            f"no LoRA layers named {name!r} in {type(model).__name__}: give the model of peft.get_peft_model(base,"
            " LoraConfig(...)), or `name` as PEFT calls the adapter"
        )
    fingerprint = Fingerprint()
    for module, layer in layers.items():
        _require_b_alone(module, cast(Any, layer), name)
        A, base = cast(Any, layer).lora_A[name].weight, cast(Any, layer).base_layer.weight
        fingerprint.add(module, tuple(base.shape), tensor_sha256(base.detach().float()))
        fingerprint.add(f"{module}.A", tuple(A.shape), tensor_sha256(A.detach().float()))
    model.requires_grad_(False)
    adapter = LoraAdapter(model, layers, name, fingerprint.hexdigest())
    for parameter in adapter.parameters():
        parameter.requires_grad_(True)
    return adapter


def _require_b_alone(module: str, layer: Any, name: str) -> None:
    if name in getattr(layer, "lora_magnitude_vector", {}):
        raise RankspaceError(f"{module} is DoRA: its change is not linear in B; set use_dora=False")
    if getattr(layer.lora_B[name], "bias", None) is not None:
        raise RankspaceError(f"{module} has a bias in B: set lora_bias=False")
    if not isinstance(layer.base_layer, nn.Linear) or not layer.base_layer.weight.is_floating_point():
        raise RankspaceError(f"{module} is {type(layer.base_layer).__name__}: LoRA on unquantised nn.Linear only")
