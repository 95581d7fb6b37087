"""Arms inside AdamW: hand-worked numbers, and torch's own AdamW as the judge. DeepSpeed: test_ds_hook.py."""

from __future__ import annotations

import pytest
import torch

import rankspace
from rankspace.adam import Adam, clip_share, fisher_update, untouched_second, without_hackward
from rankspace.errors import RankspaceError
from rankspace.projection import Layout, project

LAYOUT = Layout(("one", "two"), (2, 3))
V = torch.tensor([0.6, 0.8, 1.0, 0.0, 0.0])
IDS = torch.tensor([[5, 9, 2, 7, 1, 3]])


def flat(*values):
    return torch.tensor(values)


def test_the_first_moment_loses_its_hackward_part_by_hand():
    # m·v = 3·.6 + 4·.8 = 5 > 0, taken out whole; second module: −2 < 0, untouched
    found, moved = without_hackward(flat(3.0, 4.0, -2.0, 1.0, 1.0), V, LAYOUT)
    assert found.tolist() == pytest.approx([0.0, 0.0, -2.0, 1.0, 1.0], abs=1e-7) and moved.tolist() == [True, False]


def test_the_smallest_correction_in_adams_metric_by_hand():
    # u·v = −1·.6 + .5·.8 = −.2; P v = (1·.6, 3·.8); vPv = .36 + 1.92 = 2.28; u + .2/2.28 (.6, 2.4)
    u = flat(-1.0, 0.5, 2.0, 0.0, -1.0)  # second module: u·v = 2 > 0, away from the hack
    found, moved = fisher_update(u, V, LAYOUT, flat(1.0, 3.0, 1.0, 1.0, 1.0))
    want = [-1 + 0.2 / 2.28 * 0.6, 0.5 + 0.2 / 2.28 * 2.4, 2.0, 0.0, -1.0]
    assert found.tolist() == pytest.approx(want) and moved.tolist() == [True, False]
    assert float(found[0] * 0.6 + found[1] * 0.8) == pytest.approx(0.0, abs=1e-7)


def test_no_other_correction_is_smaller_in_that_metric():
    p, u = flat(0.5, 2.0, 1.0, 1.0, 1.0), flat(-1.0, -0.5, 1.0, 0.0, 0.0)
    found, _ = fisher_update(u, V, LAYOUT, p)
    cost = float(((found - u)[:2].square() / p[:2]).sum())
    other = flat(0.8, -0.6)  # along the plane v·u = 0
    for t in (-0.3, -0.01, 0.01, 0.3):
        assert float((((found - u)[:2] + t * other).square() / p[:2]).sum()) > cost


def test_the_share_that_clipping_left_by_hand():
    g, earlier = flat(3.0, 4.0, 0.0, 0.0, 0.0), flat(1.0, 0.0, 2.0, 0.0, 0.0)
    first = 0.9 * earlier + 0.1 * 0.25 * g  # clipped to a quarter
    assert clip_share(first, earlier, g, 0.9) == pytest.approx(0.25, rel=1e-5)
    assert clip_share(first, earlier, torch.zeros(5), 0.9) == 1.0


def test_the_second_moment_of_the_untouched_gradient_by_hand():
    # .99·1 + .01·(.5·4)²; and a gradient that the projection moved away from 0 leaves no rounding of what it was
    found = untouched_second(flat(1.0, 0.0), flat(4.0, 1e-6), 0.5, 0.99)
    assert found.tolist() == pytest.approx([0.99 + 0.04, 0.01 * 0.25e-12])


def test_a_step_is_torchs():
    torch.manual_seed(1)
    parameter = torch.nn.Parameter(torch.randn(5))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)
    for _ in range(3):
        before = parameter.detach().clone()
        parameter.grad = torch.randn(5)
        optimizer.step()
        state = optimizer.state[parameter]
        found = Adam.of(optimizer.param_groups, [state]).step(before, state["exp_avg"], state["exp_avg_sq"])
        assert torch.allclose(found, parameter.detach(), atol=1e-7)


def train(tiny_qwen3, variant, steps=4, clip=0.05, betas=(0.9, 0.99), direction=None):
    """delta_S after each step, and what the hook said, with clipping that bites."""
    model = tiny_qwen3()
    adapter = rankspace.attach(model)
    direction = direction or rankspace.random_direction(adapter.modules, 3)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.02, betas=betas, weight_decay=0.01)
    hook = rankspace.GradientHook(optimizer, adapter, direction, variant)
    told, history, gradients = [], [], []
    for step in range(steps):
        model.zero_grad()
        model(input_ids=(IDS * (step + 3)) % 60, labels=IDS).loss.backward()
        gradients.append(rankspace.hook.read_grad(adapter))
        said = hook.before_step(step)
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), clip)
        optimizer.step()
        told.append(said | hook.after_step())
        history.append(adapter.get_flat())
    return history, told, gradients, direction, hook


def test_m_only_is_adamw_with_two_gradients(tiny_qwen3):
    """Written out by hand from the gradients of the run: m of g', w of g, both clipped by the norm of g'."""
    history, _, gradients, direction, hook = train(tiny_qwen3, "m_only")
    layout, n = hook.layout, len(gradients[0])
    delta, m, w = torch.zeros(n), torch.zeros(n), torch.zeros(n)
    for t, (g, after) in enumerate(zip(gradients, history, strict=True), start=1):
        handed, _ = project(g, direction.vectors, layout, "one_sided")
        s = min(1.0, 0.05 / (float(handed.norm()) + 1e-6))
        m, w = 0.9 * m + 0.1 * s * handed, 0.99 * w + 0.01 * (s * g).square()
        moved = 0.02 * (m / (1 - 0.9**t)) / ((w / (1 - 0.99**t)).sqrt() + 1e-8)
        delta = (1 - 0.02 * 0.01) * delta - moved
        assert torch.allclose(after, delta, atol=2e-5, rtol=1e-4)
        assert s < 0.5, "clipping did not bite, so its share was not tested"
        delta = after
    assert torch.allclose(hook._second(), w, rtol=1e-3, atol=1e-12)
    plain, *_ = train(tiny_qwen3, "one_sided")
    assert not torch.allclose(plain[-1], history[-1], atol=1e-3)


def test_moments_never_point_to_the_hack(tiny_qwen3):
    _, told, _, direction, hook = train(tiny_qwen3, "moments")
    along = (hook.layout.pad(hook._moment()) * hook.layout.pad(direction.vectors)).sum(-1)
    assert along.max() < 1e-9 and all(0 < row["placed_share"] < 1 for row in told)
    _, _, _, _, free = train(tiny_qwen3, "off")
    assert (free.layout.pad(free._moment()) * free.layout.pad(direction.vectors)).sum(-1).max() > 1e-5


def test_fisher_leaves_no_step_to_the_hack(tiny_qwen3):
    history, told, _, direction, hook = train(tiny_qwen3, "fisher")
    rows = hook.layout.pad(direction.vectors)
    steps = [b - a for a, b in zip([torch.zeros_like(history[0]), *history], history, strict=False)]
    for step in steps:
        assert (hook.layout.pad(step) * rows).sum(-1).min() > -1e-7
    assert all(0 < row["placed_share"] < 1 for row in told)


@pytest.mark.parametrize("variant", ["m_only", "moments", "fisher"])
def test_nothing_changes_where_nothing_points_to_the_hack(tiny_qwen3, variant):
    """v against the first gradient in every module: no arm has anything to do in the first step."""
    model = tiny_qwen3()
    adapter = rankspace.attach(model)
    model(input_ids=(IDS * 3) % 60, labels=IDS).loss.backward()
    g = rankspace.hook.read_grad(adapter)
    layout = Layout.of(adapter.modules)
    v = layout.unpad(-rankspace.projection.unit_rows(layout.pad(g), layout.names)).float()
    direction = rankspace.Direction("v_hack", v, adapter.modules)
    mine, *_ = train(tiny_qwen3, variant, steps=1, direction=direction)
    free, *_ = train(tiny_qwen3, "off", steps=1, direction=direction)
    assert torch.allclose(mine[0], free[0], atol=1e-6)


def test_an_inactive_step_is_left_alone(tiny_qwen3):
    for variant in ("m_only", "moments", "fisher"):
        model = tiny_qwen3()
        adapter = rankspace.attach(model)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1, weight_decay=0.0)
        hook = rankspace.GradientHook(optimizer, adapter, rankspace.random_direction(adapter.modules, 3), variant)
        model(input_ids=IDS, labels=IDS).loss.backward()
        raw = rankspace.hook.read_grad(adapter)
        hook.before_step(0, active=False)
        optimizer.step()
        hook.after_step()
        assert torch.allclose(adapter.get_flat(), -0.1 * raw / (raw.abs() + 1e-8), atol=1e-6)


def test_what_is_no_adamw_is_refused_at_once(tiny_qwen3):
    adapter = rankspace.attach(tiny_qwen3())
    direction = rankspace.random_direction(adapter.modules, 3)
    for made in (torch.optim.SGD(adapter.parameters(), lr=0.1), torch.optim.AdamW(adapter.parameters(), amsgrad=True)):
        with pytest.raises(RankspaceError, match="act inside AdamW"):
            rankspace.GradientHook(made, adapter, direction, "fisher")
