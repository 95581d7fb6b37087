"""The projection against hand-worked numbers, a float64 reference written from the equations, and its identities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankspace import Layout, RankspaceError, drift_cosine, project, project_update, update_cosine
from rankspace.projection import RESCALED, VARIANTS

HAND = Layout.of([("a", 2), ("b", 3)])
G = torch.tensor([3.0, 4.0, 1.0, 2.0, 2.0])
V = torch.tensor([1.0, 0.0, -1.0, 0.0, 0.0])  # cos(a) = 3/5, cos(b) = -1/3


def reference(g, v, variant, rescale):
    """One module, plain Python floats, straight from the docstring's equations."""
    norm_v = math.sqrt(sum(x * x for x in v))
    v = [x / norm_v for x in v]
    norm = math.sqrt(sum(x * x for x in g))
    if norm == 0:
        return list(g)
    c = sum(a * b for a, b in zip(g, v, strict=True)) / norm
    if variant == "drift_only":
        out = [min(0.0, c) * norm * x for x in v]
    else:
        take = {"two_sided": c, "bias": 0.1}.get(variant, max(0.0, c))
        if take == 0:
            return list(g)
        out = [a - take * norm * b for a, b in zip(g, v, strict=True)]
    left = math.sqrt(sum(x * x for x in out))
    if left <= 1e-6 * norm:
        return [0.0] * len(g)
    return [x * norm / left for x in out] if rescale else out


def test_one_sided_by_hand():
    out, m = project(G, V, HAND)
    # a: (3,4) − 3·(1,0) = (0,4), rescaled to norm 5; b: cos < 0, untouched bit for bit
    assert torch.allclose(out[:2], torch.tensor([0.0, 5.0])) and torch.equal(out[2:], G[2:])
    assert m["cos"].tolist() == pytest.approx([0.6, -1 / 3])
    assert m["cos_mean"] == pytest.approx((0.6 - 1 / 3) / 2) and m["cos_std"] == pytest.approx((0.6 + 1 / 3) / 2)
    assert m["grad_norm_mean"] == pytest.approx(4.0) and m["grad_norm"] == pytest.approx(math.sqrt(34))
    assert m["frac_fired"] == 0.5 and m["removed_mean"] == pytest.approx(0.3)
    assert m["null_std"].tolist() == pytest.approx([1 / math.sqrt(2), 1 / math.sqrt(3)])
    assert m["cos_mean_null_std"] == pytest.approx(math.sqrt(1 / 2 + 1 / 3) / 2)
    assert (m["n_modules"], m["n_zero"], m["n_annihilated"]) == (2, 0, 0)


@pytest.mark.parametrize(
    ("variant", "rescale", "want"),
    [
        ("no_rescale", None, [0, 4, 1, 2, 2]),
        ("one_sided", False, [0, 4, 1, 2, 2]),
        ("two_sided", None, [0, 5, 0, 3 / math.sqrt(2), 3 / math.sqrt(2)]),
        ("drift_only", None, [0, 0, 1, 0, 0]),
        ("drift_only", True, [0, 0, 3, 0, 0]),
        ("measure_only", None, [3, 4, 1, 2, 2]),
        ("off", None, [3, 4, 1, 2, 2]),
        # a: (3,4) − .1·5·(1,0) = (2.5,4), to norm 5; b: (1,2,2) − .1·3·(−1,0,0) = (1.3,2,2), to norm 3
        ("bias", None, [12.5 / 22.25**0.5, 20 / 22.25**0.5, 3.9 / 9.69**0.5, 6 / 9.69**0.5, 6 / 9.69**0.5]),
        ("bias", False, [2.5, 4, 1.3, 2, 2]),
        ("update", None, [3, 4, 1, 2, 2]),
    ],
)
def test_variants_by_hand(variant, rescale, want):
    out, m = project(G, V, HAND, variant, rescale)
    assert out.tolist() == pytest.approx(want, abs=1e-6)
    assert m["cos"].tolist() == pytest.approx([0.6, -1 / 3])  # measured before, in every variant


def test_subspace_by_hand():
    layout = Layout.of([("a", 3)])
    v = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    out, m = project(torch.tensor([3.0, -4.0, 12.0]), v, layout, "subspace")
    # only the positive component goes: (0, −4, 12), norm sqrt(160) -> 13
    assert torch.allclose(out, torch.tensor([0.0, -4.0, 12.0]) * 13 / math.sqrt(160))
    assert m["cos"].tolist() == pytest.approx([3 / 13]) and m["frac_fired"] == 1.0


def test_all_of_the_gradient_on_v_becomes_zero_and_is_counted():
    out, m = project(torch.tensor([2.0, 0.0, 0.0, 0.0, 5.0]), V, HAND)
    assert out.tolist() == [0, 0, 0, 0, 5] and m["n_annihilated"] == 1


def test_zero_gradient_module_is_untouched_with_cos_zero():
    out, m = project(torch.tensor([0.0, 0.0, -1.0, 0.0, 0.0]), V, HAND)
    assert out[:2].tolist() == [0, 0] and m["cos"][0] == 0 and m["n_zero"] == 1
    assert all(math.isfinite(x) for x in m.values() if isinstance(x, float))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_names_the_module(bad):
    g = G.clone()
    g[3] = bad
    with pytest.raises(RankspaceError, match="of 1 of 2 modules holds NaN or Inf, the last of them b:"):
        project(g, V, HAND)


def test_a_gradient_that_is_no_number_says_in_how_many_modules_and_where_it_began():
    layout = Layout.of([("a", 2), ("b", 2), ("c", 2)])
    gradient = torch.tensor([1.0, 0.0, torch.nan, 0.0, torch.inf, 0.0])
    with pytest.raises(RankspaceError, match=r"of 2 of 3 modules holds NaN or Inf, the last of them c:.*avoid_cudnn"):
        project(gradient, torch.tensor([1.0, 0.0] * 3), layout, "one_sided")


@pytest.mark.parametrize(
    ("g", "v", "variant", "message"),
    [
        (G[:4], V, "one_sided", "4 entries does not fit modules of 5"),
        (G, torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]), "one_sided", "direction of a is zero"),
        (G, V.repeat(2, 1), "one_sided", "takes one vector per module"),
        (G, V, "subspace", "needs a subspace direction"),
        (G, V.repeat(2, 1), "subspace", "vectors of a are not orthonormal"),
        (G, V, "sideways", "variant 'sideways' is unknown"),
    ],
)
def test_misuse_is_one_line(g, v, variant, message):
    with pytest.raises(RankspaceError, match=message) as error:
        project(g, v, HAND, variant)
    assert "\n" not in str(error.value)


ranks = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@st.composite
def cases(draw):
    layout = Layout.of([(f"m{i}", r) for i, r in enumerate(draw(ranks))])
    torch.manual_seed(draw(st.integers(0, 2**31)))
    scale = 10.0 ** draw(st.integers(-18, 12))
    g = torch.randn(layout.size) * scale
    v = torch.randn(layout.size) * 10.0 ** draw(st.integers(-5, 5))
    if draw(st.booleans()):  # lean towards v: the hard case for rounding
        g = g * draw(st.sampled_from([1.0, 1e-2, 1e-4])) + v / v.norm() * scale
    return layout, g, v


@given(cases())
@settings(max_examples=150, deadline=None)
def test_identities_of_one_sided(case):
    layout, g, v = case
    out, m = project(g, v, layout)
    unit = layout.pad(v) / layout.pad(v).norm(dim=-1, keepdim=True)
    before, after = layout.pad(g), layout.pad(out)
    norm = before.norm(dim=-1)
    dot = (after * unit).sum(dim=-1)
    cos = (before * unit).sum(dim=-1) / norm.clamp_min(1e-300)
    assert (dot <= 4e-7 * norm).all()  # nothing is left along v, up to the rounding of fp32 results
    gone = after.norm(dim=-1) == 0
    kept = torch.isclose(after.norm(dim=-1), norm, rtol=1e-6, atol=0)
    assert (kept | gone).all() and int((gone & (norm > 0)).sum()) == m["n_annihilated"]
    for a, b, c in zip(before, after, cos.tolist(), strict=True):
        assert c > 0 or torch.equal(a, b)  # cos <= 0: bit for bit


@given(cases(), st.sampled_from([v for v in VARIANTS if v not in ("subspace", "span")]))
@settings(max_examples=150, deadline=None)
def test_equals_a_float64_reference(case, variant):
    layout, g, v = case
    g, v = g.double(), v.double()
    out, m = project(g, v, layout, variant)
    want = []
    for a, b in zip(torch.split(g, layout.ranks), torch.split(v, layout.ranks), strict=True):
        plain = variant in ("measure_only", "off", "update")
        want += a.tolist() if plain else reference(a.tolist(), b.tolist(), variant, variant in RESCALED)
    want = torch.tensor(want, dtype=torch.float64)
    # near the annihilation threshold both sides are right: compare modules that are clear of it
    clear = torch.cat([torch.full((r,), bool(abs(c) < 1 - 1e-9)) for r, c in zip(layout.ranks, m["cos"], strict=True)])
    assert torch.allclose(out[clear], want[clear], rtol=1e-6, atol=1e-9 * g.abs().max().item())


@given(cases(), st.floats(1e-6, 1e6))
@settings(max_examples=60, deadline=None)
def test_homogeneous_and_idempotent(case, factor):
    layout, g, v = case
    g, v = g.double(), v.double()
    out, _ = project(g, v, layout)
    scaled, _ = project(g * factor, v, layout)
    assert torch.allclose(scaled, out * factor, rtol=1e-6, atol=1e-9 * factor * g.abs().max().item())
    again, _ = project(out, v, layout)
    assert torch.allclose(again, out, rtol=1e-6, atol=1e-9 * g.abs().max().item())


@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_module_order_does_not_matter(case, random):
    layout, g, v = case
    order = list(range(len(layout.names)))
    random.shuffle(order)
    other = Layout.of([(layout.names[i], layout.ranks[i]) for i in order])

    def move(x):
        parts = torch.split(x, layout.ranks)
        return torch.cat([parts[i] for i in order])

    out, m = project(g, v, layout)
    moved, n = project(move(g), move(v), other)
    assert torch.equal(moved, move(out))
    assert torch.equal(n["cos"], m["cos"][order])


@given(cases())
@settings(max_examples=40, deadline=None)
def test_subspace_of_one_vector_is_one_sided(case):
    layout, g, v = case
    assert torch.equal(project(g, v[None], layout, "subspace")[0], project(g, v, layout)[0])


@given(st.integers(3, 9), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_subspace_leaves_no_positive_component(r, seed):
    torch.manual_seed(seed)
    layout = Layout.of([("a", r), ("b", r + 2)])
    v = torch.cat([torch.linalg.qr(torch.randn(n, 2, dtype=torch.float64))[0].T for n in layout.ranks], dim=1)
    g = torch.randn(layout.size, dtype=torch.float64)
    out = layout.pad(project(g, v, layout, "subspace")[0])
    assert (torch.einsum("mr,kmr->km", out, layout.pad(v)) <= 1e-9).all()
    assert torch.allclose(out.norm(dim=-1), layout.pad(g).norm(dim=-1))


def test_null_band_is_that_of_random_directions():
    layout = Layout.of([(f"m{i}", 64) for i in range(400)])
    torch.manual_seed(0)
    _, m = project(torch.randn(layout.size), torch.randn(layout.size), layout, "measure_only")
    assert m["cos_std"] == pytest.approx(1 / 8, rel=0.15) and abs(m["cos_mean"]) < 4 * m["cos_mean_null_std"]
    assert m["frac_outside_null"] == pytest.approx(0.0455, abs=0.04)


def test_update_has_the_sign_of_a_gradient():
    # plain descent, update = −lr·g: its cosine is that of g, and projecting it removes what raises the hack
    m = update_cosine(-0.1 * G, V, HAND)
    assert m["update_cos"].tolist() == pytest.approx([0.6, -1 / 3]) and m["update_frac_fired"] == 0.5
    assert m["update_norm"] == pytest.approx(0.1 * math.sqrt(34))
    out, _ = project_update(-0.1 * G, V, HAND)
    assert torch.allclose(out, torch.tensor([0.0, -0.5, -0.1, -0.2, -0.2]))


def test_the_drift_by_hand():
    # 3·0.6 + 4·0.8 = 5 over a length of 5: all of it against the hack; -2·1 over 2·sqrt(2): half of it towards
    layout, v = Layout.of([("a", 2), ("b", 3), ("c", 1)]), torch.tensor([0.6, 0.8, 1.0, 0.0, 0.0, -1.0])
    delta = torch.tensor([3.0, 4.0, -2.0, 2.0, 0.0, 0.0])  # the last one has not moved
    assert drift_cosine(delta, v, layout).tolist() == pytest.approx([-1.0, 2**-0.5, 0.0])
    assert torch.equal(drift_cosine(delta, v, layout), update_cosine(delta, v, layout)["update_cos"])


def test_input_is_not_changed_and_dtype_kept():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        g = G.to(dtype)
        out, _ = project(g, V, HAND)
        assert out.dtype == dtype and torch.equal(g, G.to(dtype))


def test_layout_round_trip_and_refusals():
    flat = torch.arange(5.0)
    assert torch.equal(HAND.unpad(HAND.pad(flat)).float(), flat)
    stacked = torch.stack([flat, -flat])
    assert torch.equal(HAND.unpad(HAND.pad(stacked)).float(), stacked)
    for modules in ([], [("a", 0)]):
        with pytest.raises(RankspaceError, match="at least one module"):
            Layout.of(modules)
