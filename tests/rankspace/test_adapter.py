"""The adapter on tiny Qwen3, Llama, Qwen3.5 and Qwen3-Next: identity at zero, round trip, gradients, detach."""

import copy

import pytest
import torch
from torch import nn

import rankspace
from rankspace import RankspaceError, attach, detach, merged_weight
from rankspace.gradient import delta_gradient

IDS = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(3))
FORMS = ("factored", "merged")
FAMILIES = ("qwen3", "llama", "qwen3_5", "qwen3_next")
EXPECTED = {  # module names of the first layers, and how many there are in all
    "qwen3": ({"self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"}, 14),
    "llama": ({"self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"}, 14),
    "qwen3_5": (
        {"linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.in_proj_a", "linear_attn.out_proj"},
        31,
    ),
    "qwen3_next": ({"linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba", "linear_attn.out_proj"}, 13),
}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def noise(adapter, scale=0.05) -> torch.Tensor:
    return scale * torch.randn(sum(r for _, r in adapter.modules), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_bit_identical_at_zero_and_after_detach(make, family, dtype, form):
    model = make(family, dtype)
    base, names = logits(model), list(model.state_dict())
    adapter = attach(model, form=form)
    assert torch.equal(logits(model), base)
    adapter.set_flat(noise(adapter, 1.0))
    assert not torch.equal(logits(model), base)
    with adapter.disabled():
        assert torch.equal(logits(model), base)
    adapter.set_flat(torch.zeros_like(adapter.get_flat()))
    assert torch.equal(logits(model), base)
    detach(adapter)
    assert torch.equal(logits(model), base) and list(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_equals_a_model_with_merged_weights(make, family, form):
    model = make(family)
    twin = copy.deepcopy(model)
    adapter = attach(model, form=form)
    flat = noise(adapter)
    adapter.set_flat(flat)
    assert torch.equal(adapter.get_flat(), flat)
    source = rankspace.MergeSource.load(twin.state_dict().items(), adapter.modules)
    missing, unexpected = twin.load_state_dict(dict(source.merged(flat)), strict=False)
    assert not unexpected and len(missing) == len(twin.state_dict()) - len(adapter.modules)
    assert (logits(model) - logits(twin)).abs().max() < 1e-3
    assert (logits(model) - logits(make(family))).abs().max() > 1e-2  # and the adapter did something


@pytest.mark.parametrize("family", FAMILIES)
def test_default_targets_cover_the_family_and_spare_the_head(make, family):
    adapter = attach(make(family))
    names = [name for name, _ in adapter.modules]
    wanted, count = EXPECTED[family]
    assert all(any(name.endswith(end) for name in names) for end in wanted) and len(names) == count
    assert not any("lm_head" in name or "embed" in name or "conv" in name for name in names)
    assert list(adapter.named_delta()) == names


def test_only_delta_trains_in_fp32_and_order_is_the_models(make):
    model = make("qwen3", torch.bfloat16)
    adapter = attach(model)
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert [n for n, _ in trainable] == [f"{name}.delta_S" for name, _ in adapter.modules]
    assert all(a is b for (_, a), b in zip(trainable, adapter.parameters(), strict=True))
    assert all(p.dtype == torch.float32 and not torch.any(p) for p in adapter.parameters())
    order = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    assert [n for n, _ in adapter.modules] == order
    assert all(r == min(model.get_submodule(n).weight.shape) for n, r in adapter.modules)
    assert not any("_rankspace" in key for key in model.state_dict())  # the bases are not saved with the model


@pytest.mark.parametrize("form", FORMS)
def test_gradients_equal_a_float64_reference(make, form):
    """d loss / d delta by the definition: merge the weight differentiably in float64."""
    torch.manual_seed(0)
    model = make("llama")
    adapter = attach(model, form=form)
    adapter.set_flat(noise(adapter))
    weight = torch.randn(2, 9, 64)
    (model(input_ids=IDS, use_cache=False).logits * weight).sum().backward()
    got = torch.cat([p.grad for p in adapter.parameters()])

    twin = make("llama").double()
    deltas = [p.detach().double().requires_grad_() for p in adapter.parameters()]
    merged = {}
    for (name, _), delta in zip(adapter.modules, deltas, strict=True):
        linear = model.get_submodule(name)
        U, Vh = linear._rankspace_U.double(), linear._rankspace_Vh.double()
        merged[f"{name}.weight"] = twin.get_parameter(f"{name}.weight").detach() + (U * delta) @ Vh
    out = torch.func.functional_call(twin, merged, kwargs={"input_ids": IDS, "use_cache": False}).logits
    (out * weight.double()).sum().backward()
    want = torch.cat([d.grad for d in deltas])
    assert ((got - want).norm() / want.norm()).item() < 1e-5


@pytest.mark.parametrize("tokens", [1, 5, 400])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_both_forms_of_the_delta_gradient_by_definition(tokens, shape):
    torch.manual_seed(tokens)
    out, inner = shape
    W = torch.randn(out, inner, dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    x, g = torch.randn(tokens, inner, dtype=torch.float64), torch.randn(tokens, out, dtype=torch.float64)
    delta = torch.zeros(min(shape), dtype=torch.float64, requires_grad=True)
    ((x @ (W + (U * delta) @ Vh).T) * g).sum().backward()
    assert torch.allclose(delta_gradient(x, g, U, Vh), delta.grad)
    assert torch.allclose(delta_gradient(x.view(1, tokens, inner), g.view(1, tokens, out), U, Vh), delta.grad)


def test_merged_form_knows_when_it_is_stale(make):
    model = make("qwen3")
    adapter = attach(model, form="merged")
    before = logits(model)
    with torch.no_grad():
        adapter.parameters()[0].add_(0.5)
    with pytest.raises(RankspaceError, match=r"q_proj.*call adapter.refresh\(\)"):
        adapter.require_fresh()
    moved = logits(model)  # on the CPU the forward notices by itself
    assert not torch.equal(moved, before)
    adapter.require_fresh()
    adapter.refresh()
    assert torch.equal(logits(model), moved)


def test_basis_dtype_may_differ_from_the_weights(make):
    model = make("qwen3", torch.bfloat16)
    base = logits(model)
    adapter = attach(model, basis_dtype=torch.float32)
    assert torch.equal(logits(model), base)
    adapter.set_flat(noise(adapter))
    assert logits(model).dtype == torch.bfloat16
    assert model.model.layers[0].mlp.up_proj._rankspace_U.dtype == torch.float32


def test_targets_by_name_glob_and_full_path(make):
    names = lambda **k: [n for n, _ in attach(make("qwen3"), **k).modules]  # noqa: E731
    assert [n.rsplit(".", 1)[1] for n in names(targets=["q_proj"])] == ["q_proj", "q_proj"]
    assert len(names(targets=["*_proj"])) == 14
    assert names(targets=["model.layers.1.mlp.*"]) == [f"model.layers.1.mlp.{n}_proj" for n in ("gate", "up", "down")]
    assert len(names(targets=["*"])) == 14  # never the head


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["lm_head"], "matches the targets .*lm_head and embeddings are never adapted"),
        (["q_proj", "qq_proj"], "target 'qq_proj' matches no nn.Linear"),
        ([], "no nn.Linear of Qwen3ForCausalLM matches"),
    ],
)
def test_targets_that_match_nothing(make, targets, message):
    model = make("qwen3")
    with pytest.raises(RankspaceError, match=message) as error:
        attach(model, targets)
    assert "\n" not in str(error.value) and all(p.requires_grad for p in model.parameters())


def test_a_model_without_matching_modules_says_what_to_do():
    with pytest.raises(RankspaceError, match=r"Sequential matches the targets.*give targets"):
        attach(nn.Sequential(nn.Linear(3, 3)))


def test_vision_towers_are_left_alone():
    model = nn.ModuleDict({"visual": nn.ModuleDict({"q_proj": nn.Linear(4, 4)}), "q_proj": nn.Linear(4, 4)})
    assert [n for n, _ in attach(model).modules] == ["q_proj"]


def test_refusals_leave_the_model_as_it_was(make):
    model = make("qwen3")
    adapter = attach(model)
    with pytest.raises(RankspaceError, match="already has an adapter"):
        attach(model)
    for bad, message in (
        (torch.zeros(3), "modules need"),
        (torch.full_like(adapter.get_flat(), torch.nan), "NaN or Inf"),
    ):
        with pytest.raises(RankspaceError, match=message):
            adapter.set_flat(bad)
    assert not torch.any(adapter.get_flat())
    with pytest.raises(RankspaceError, match="form 'folded' is unknown"):
        attach(make("qwen3"), form="folded")
    broken = make("qwen3")
    broken.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(RankspaceError, match="weight holds NaN"):
        attach(broken)
    assert all(p.requires_grad for p in broken.parameters()) and "delta_S" not in str(list(broken.state_dict()))
    with torch.device("meta"):
        empty = nn.ModuleDict({"q_proj": nn.Linear(4, 4)})
    with pytest.raises(RankspaceError, match="with its weights"):
        attach(empty)


def test_fingerprint_is_that_of_the_values(make):
    a, b = attach(make("qwen3", torch.bfloat16)), attach(make("qwen3", torch.bfloat16).float())
    assert a.fingerprint == b.fingerprint
    other = make("qwen3", torch.bfloat16)
    other.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    assert attach(other).fingerprint != a.fingerprint
    assert attach(make("qwen3", torch.bfloat16), ["q_proj"]).fingerprint != a.fingerprint


def test_deepcopy_is_independent(make):
    model = make("qwen3")
    adapter = attach(model)
    twin = copy.deepcopy(model)
    base = logits(twin)
    adapter.set_flat(noise(adapter, 1.0))
    assert torch.equal(logits(twin), base) and not torch.equal(logits(model), base)


def test_a_training_step_moves_the_policy_and_leaves_w0(make):
    model = make("qwen3")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    adapter = attach(model)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.05)
    losses = []
    for _ in range(15):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    (name, _), delta = adapter.modules[4], adapter.parameters()[4]
    linear = model.get_submodule(name)
    x = torch.randn(3, linear.in_features)
    want = x @ merged_weight(linear.weight, linear._rankspace_U, delta.detach(), linear._rankspace_Vh).T
    assert torch.allclose(linear(x), want, atol=1e-5)
