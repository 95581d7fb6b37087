"""v_hack, its controls, validation, gate and files: by definition, by hand, and attacked."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from rankspace import (
    Direction,
    PairGradients,
    RankspaceError,
    attach,
    extract_gradients,
    hack_direction,
    load_direction,
    random_direction,
    require_gate,
    require_validated,
    save_direction,
    shuffled_direction,
    subspace_direction,
    validate,
)
from rankspace.direction import completion_nll, with_metadata

MODULES = [("a", 2), ("b", 3)]


def gradients(difference, modules=MODULES) -> PairGradients:
    difference = torch.as_tensor(difference)
    return PairGradients(difference + 1.5, torch.full_like(difference, 1.5), list(modules))


def planted(pairs: int, seed: int = 0, strength: float = 1.0, modules=MODULES) -> PairGradients:
    """Differences that share a direction (all ones) under unit noise."""
    size = sum(r for _, r in modules)
    return gradients(strength + torch.randn(pairs, size, generator=torch.Generator().manual_seed(seed)), modules)


def test_v_hack_by_hand():
    v = hack_direction(gradients([[3.0, 0.0, 0.0, 2.0, 0.0], [3.0, 8.0, 0.0, 0.0, 0.0]]))
    # a: mean (3, 4) -> (0.6, 0.8); b: mean (0, 1, 0)
    assert v.vectors.tolist() == pytest.approx([0.6, 0.8, 0.0, 1.0, 0.0]) and v.kind == "v_hack"


def test_swapping_every_pair_turns_it_around():
    g = planted(5)
    swapped = PairGradients(g.clean, g.hack, g.modules)
    assert torch.allclose(hack_direction(swapped).vectors, -hack_direction(g).vectors)


def test_a_module_without_a_difference_is_refused_by_name():
    with pytest.raises(RankspaceError, match=r"direction of b is zero"):
        hack_direction(gradients([[1.0, 0.0, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("form", ["factored", "merged"])
def test_extraction_is_the_gradient_of_the_mean_nll(tiny_qwen3, tiny_pairs, form):
    model = tiny_qwen3(attention_dropout=0.5).train()
    adapter = attach(model, form=form)
    seen = []
    got = extract_gradients(model, adapter, tiny_pairs, lambda *x: seen.append(x))
    assert model.training and seen[-1] == (8, 8, "p7")  # eval mode (no dropout) while it ran, train mode again after
    assert not any(p.grad is not None for p in model.parameters())
    model.eval()
    pair = tiny_pairs[3]
    labels = torch.tensor([[-100] * pair.start + pair.hack_ids[pair.start :]])
    out = model(input_ids=torch.tensor([pair.hack_ids]), labels=labels, use_cache=False)
    out.loss.backward()  # transformers' own mean over completion tokens
    want = torch.cat([p.grad for p in adapter.parameters()])
    assert torch.allclose(got.hack[3], want, atol=1e-6, rtol=1e-4)
    assert completion_nll(model, pair.hack_ids, pair.start).item() == pytest.approx(out.loss.item(), rel=1e-5)
    assert torch.equal(got.difference, got.hack - got.clean)


def test_descent_along_v_makes_the_clean_side_likelier(tiny_qwen3, tiny_pairs):
    """The sign of it all: v points where NLL(hack) − NLL(clean) grows."""
    model = tiny_qwen3()
    adapter = attach(model)
    v = hack_direction(extract_gradients(model, adapter, tiny_pairs)).vectors

    def gap() -> float:
        sides = [[completion_nll(model, ids, p.start) for ids in (p.hack_ids, p.clean_ids)] for p in tiny_pairs]
        return sum((h - c).item() for h, c in sides)

    with torch.no_grad():
        middle = gap()
        adapter.set_flat(0.05 * v)
        up = gap()
        adapter.set_flat(-0.05 * v)
        down = gap()
    assert down < middle < up


def test_extraction_refuses(tiny_qwen3, tiny_pairs):
    model = tiny_qwen3()
    adapter = attach(model)
    with pytest.raises(RankspaceError, match="no pairs"):
        extract_gradients(model, adapter, [])
    adapter.set_flat(torch.full_like(adapter.get_flat(), 0.1))
    with pytest.raises(RankspaceError, match="defined at delta_S = 0"):
        extract_gradients(model, adapter, tiny_pairs)
    moved = extract_gradients(model, adapter, tiny_pairs[:1], at_zero=False)
    adapter.set_flat(torch.zeros_like(adapter.get_flat()))
    assert not torch.allclose(moved.hack, extract_gradients(model, adapter, tiny_pairs[:1]).hack, rtol=1e-2)
    for start in (0, 9):
        with pytest.raises(RankspaceError, match="must start inside"):
            completion_nll(model, list(range(9)), start)


def test_random_is_unit_seeded_and_isotropic():
    modules = [(f"m{i}", 50) for i in range(200)]
    a, b, c = random_direction(modules, 1), random_direction(modules, 1), random_direction(modules, 2)
    assert torch.equal(a.vectors, b.vectors) and not torch.equal(a.vectors, c.vectors)
    rows, others = a.vectors.view(200, 50), c.vectors.view(200, 50)
    assert torch.allclose(rows.norm(dim=1), torch.ones(200))
    assert (rows * others).sum(1).std().item() == pytest.approx(1 / math.sqrt(50), rel=0.2)


def test_shuffled_flips_half_and_loses_the_signal():
    g = planted(40, strength=3.0)
    v, s = hack_direction(g), shuffled_direction(g, 0)
    assert s.metadata["n_flipped"] == 20 and torch.equal(s.vectors, shuffled_direction(g, 0).vectors)
    assert not torch.equal(s.vectors, shuffled_direction(g, 1).vectors)
    held = planted(30, seed=1, strength=3.0)
    assert validate(v, held)["mean"] > 0.8
    means = [validate(shuffled_direction(g, seed), held)["mean"] for seed in range(20)]
    assert abs(sum(means) / 20) < 0.3 and min(means) < 0 < max(means)
    # by hand: one of two pairs flipped leaves half the difference of the two
    pair = gradients([[4.0, 0.0, 0.0, 0.0, 2.0], [0.0, 3.0, 1.0, 0.0, 0.0]])
    got = shuffled_direction(pair, 0).vectors
    want = torch.tensor([0.8, -0.6, -1 / math.sqrt(5), 0.0, 2 / math.sqrt(5)])
    assert torch.allclose(got, want) or torch.allclose(got, -want)


def test_subspace_is_orthonormal_turned_to_the_mean_and_holds_it():
    modules = [("a", 6), ("b", 9)]
    g = planted(30, strength=4.0, modules=modules)
    s = subspace_direction(g, 3)
    assert s.vectors.shape == (3, 15) and s.metadata["k"] == 3
    mean = hack_direction(g).vectors
    for part, m, d in zip(s.vectors.split([6, 9], 1), mean.split([6, 9]), g.difference.split([6, 9], 1), strict=True):
        assert torch.allclose(part @ part.T, torch.eye(3), atol=1e-5)
        assert (part @ d.mean(0) >= -1e-5).all()
        assert part[0] @ m > 0.99  # the strongest right singular vector of uncentred differences is nearly their mean
        energy = d.square().sum()
        best = torch.linalg.svd(d)[1][:3].square().sum()
        assert torch.allclose((d @ part.T).square().sum() / energy, best / energy, atol=1e-5)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_subspace_bounds(k):
    with pytest.raises(RankspaceError, match=rf"--k {k} must be between 2 and 2"):
        subspace_direction(planted(9, modules=[("a", 3), ("b", 5)]), k)


def test_subspace_of_one_repeated_pair_is_refused():
    with pytest.raises(RankspaceError, match=r"differences of a span fewer than 2"):
        subspace_direction(gradients(torch.ones(5, 8), [("a", 3), ("b", 5)]), 2)


def test_validation_by_hand():
    v = Direction("v_hack", torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0]), MODULES)
    held = gradients([[3.0, 4.0, 0.0, 0.0, -2.0], [1.0, 0.0, 0.0, 5.0, 0.0]])
    m = validate(v, held)
    # a: cos 0.6 and 1; b: cos −1 and 0
    assert [row["cos_align"] for row in m["modules"]] == pytest.approx([0.8, -0.5])
    assert [row["cos_std"] for row in m["modules"]] == pytest.approx([0.2, 0.5])
    assert (m["mean"], m["median"]) == pytest.approx((0.15, 0.15))
    assert (m["frac_positive"], m["frac_positive_pairs"]) == (0.5, 0.5) and (m["n_pairs"], m["n_modules"]) == (2, 2)
    assert m["null_std_mean"] == pytest.approx((1 / math.sqrt(2) + 1 / math.sqrt(3)) / 2)
    json.dumps(m)


@pytest.mark.parametrize(("share", "passes"), [(0.0, False), (0.5, False), (0.51, True), (float("nan"), False)])
def test_the_gate(share, passes):
    numbers = {"frac_positive": share, "n_pairs": 9}
    if passes:
        require_gate(numbers)
    else:
        with pytest.raises(RankspaceError, match=r"fails its gate: cos_align > 0 in"):
            require_gate(numbers)


def test_training_needs_a_validated_v_hack_but_not_a_validated_control():
    g = planted(4)
    with pytest.raises(RankspaceError, match="no held-out validation"):
        require_validated(hack_direction(g))
    require_validated(random_direction(MODULES, 0))
    require_validated(shuffled_direction(g, 0))
    bad = with_metadata(hack_direction(g), validation={"frac_positive": 0.4, "n_pairs": 3})
    with pytest.raises(RankspaceError, match="gate"):
        require_validated(bad)
    require_validated(with_metadata(bad, validation={"frac_positive": 0.9, "n_pairs": 3}))
    low = with_metadata(bad, validation={"frac_positive": 0.4, "n_pairs": 3})
    require_validated(low, gate=0.3)
    for gate in (0.4, 0.5):
        with pytest.raises(RankspaceError, match=f"needs more than {gate:.0%}"):
            require_validated(low, gate=gate)


@pytest.mark.parametrize("kind", ["v_hack", "subspace"])
def test_file_round_trip(tmp_path, kind):
    modules = [("model.b", 6), ("model.a", 9)]  # order is the adapter's, not the alphabet's
    g = planted(30, modules=modules)
    made = hack_direction(g, {"fingerprint": "f00", "n_pairs": 30}) if kind == "v_hack" else subspace_direction(g, 2)
    path = tmp_path / "new" / "v.safetensors"
    save_direction(made, path)
    back = load_direction(path, modules)
    assert (back.kind, back.modules, back.metadata) == (made.kind, made.modules, made.metadata)
    assert torch.equal(back.vectors, made.vectors) and set(load_file(path)) == {"model.a", "model.b"}
    assert [p.name for p in path.parent.iterdir()] == ["v.safetensors"]
    if kind == "v_hack":
        assert load_direction(path, modules, "f00").vectors.shape == (15,)
        with pytest.raises(RankspaceError, match="other weights of the same shape"):
            load_direction(path, modules, "bad")


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([("a", 2), ("c", 3)], "module 1 is b with r=3, the adapter has c with r=3"),
        ([("a", 4), ("b", 3)], "module 0 is a with r=2, the adapter has a with r=4"),
        ([("b", 3), ("a", 2)], "module 0 is a with r=2, the adapter has b with r=3"),
        ([("a", 2)], "has module b, the adapter has not"),
        ([("a", 2), ("b", 3), ("c", 1)], "has no module c"),
    ],
)
def test_another_models_direction_names_the_first_mismatch_and_the_fix(tmp_path, modules, message):
    save_direction(random_direction(MODULES, 0), tmp_path / "v.safetensors")
    with pytest.raises(RankspaceError, match=message) as error:
        load_direction(tmp_path / "v.safetensors", modules)
    assert "\n" not in str(error.value)
    with pytest.raises(RankspaceError):
        validate(load_direction(tmp_path / "v.safetensors"), planted(3, modules=modules))


def test_missing_damaged_and_foreign_files_are_one_line(tmp_path):
    path = tmp_path / "v.safetensors"
    with pytest.raises(RankspaceError, match=r"no v_hack at .*rankspace extract"):
        load_direction(path)
    save_direction(random_direction(MODULES, 0), path)
    whole = path.read_bytes()
    for data in (whole[:-3], b"", b"hello", whole[:20]):
        path.write_bytes(data)
        with pytest.raises(RankspaceError, match="not a v_hack file or is damaged"):
            load_direction(path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(RankspaceError, match="not a v_hack file"):
        load_direction(path)
    head = {"format": 99, "kind": "random", "modules": [["a", 2]]}
    save_file({"a": torch.ones(2)}, path, metadata={"rankspace": json.dumps(head)})
    with pytest.raises(RankspaceError, match="has format 99, this version reads 1"):
        load_direction(path)
