"""GradientHook around torch optimizers, and when projecting and clipping commute."""

import pytest
import torch

import rankspace
from rankspace import RankspaceError
from rankspace.hook import read_grad

IDS = torch.arange(1, 13)[None]


def attached(tiny_qwen3, **options):
    model = tiny_qwen3()
    return model, rankspace.attach(model, **options)


def backward(model):
    model(input_ids=IDS, labels=IDS).loss.backward()


def dots(adapter, direction):
    """g·v per module, of what lies in .grad."""
    layout = rankspace.Layout.of(adapter.modules)
    return (layout.pad(read_grad(adapter)) * layout.pad(direction.vectors)).sum(-1)


@pytest.mark.parametrize("form", ["factored", "merged"])
def test_the_optimizer_sees_the_projected_sum_of_the_micro_batches(tiny_qwen3, form):
    model, adapter = attached(tiny_qwen3, form=form)
    direction = rankspace.random_direction(adapter.modules, 3)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.5)
    hook = rankspace.GradientHook(optimizer, adapter, direction)
    for _ in range(2):
        backward(model)
    raw = read_grad(adapter)
    expected, known = rankspace.project(raw, direction.vectors, rankspace.Layout.of(adapter.modules))
    metrics = hook.before_step()
    assert torch.equal(read_grad(adapter), expected) and not torch.equal(raw, expected)
    assert (dots(adapter, direction) <= 1e-7).all() and metrics["frac_fired"] == known["frac_fired"] > 0
    optimizer.step()
    applied = hook.after_step()
    assert torch.allclose(adapter.get_flat(), -0.5 * expected, atol=1e-7)
    assert applied["update_frac_fired"] <= metrics["frac_fired"] and applied["update_cos_mean"] < 0
    assert applied["drift_cos_mean"] == applied["update_cos_mean"], "the first update is the whole way"


def test_the_drift_is_that_of_all_updates_together(tiny_qwen3):
    model, adapter = attached(tiny_qwen3)
    direction = rankspace.random_direction(adapter.modules, 3)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.5)
    hook = rankspace.GradientHook(optimizer, adapter, direction, variant="measure_only")
    start = direction.vectors.clone()  # as if long training had gone away from the hack, along v itself
    adapter.set_flat(start)
    backward(model)
    hook.before_step()
    for p in adapter.parameters():
        p.grad.zero_()
    optimizer.step()
    applied = hook.after_step()
    assert applied["drift_cos_mean"] == pytest.approx(-1.0, abs=1e-6) and applied["update_cos_mean"] == 0.0


def test_the_update_variant_projects_what_adam_applied(tiny_qwen3):
    model, adapter = attached(tiny_qwen3)
    direction = rankspace.random_direction(adapter.modules, 3)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1)
    hook = rankspace.GradientHook(optimizer, adapter, direction, variant="update")
    backward(model)
    raw = read_grad(adapter)
    hook.before_step()
    assert torch.equal(read_grad(adapter), raw)
    optimizer.step()
    applied = hook.after_step()
    layout = rankspace.Layout.of(adapter.modules)
    along = (layout.pad(-adapter.get_flat()) * layout.pad(direction.vectors)).sum(-1)
    assert (along <= 1e-6).all() and applied["raw_update_cos_mean"] > applied["update_cos_mean"]


def clip(g, bound):
    return g * min(1.0, bound / (g.norm().item() + 1e-6))


@pytest.mark.parametrize("variant", ["one_sided", "two_sided", "no_rescale", "drift_only"])
def test_clipping_commutes_with_the_projection_only_when_norms_are_kept(variant):
    layout = rankspace.Layout.of([("a", 17), ("b", 40), ("c", 5)])
    v = rankspace.random_direction([("a", 17), ("b", 40), ("c", 5)], 1).vectors
    g = torch.randn(62, generator=torch.Generator().manual_seed(2)) + 4 * v
    g[-5:] -= 8 * v[-5:]  # one module pulls away from the hack

    def P(x):
        return rankspace.project(x, v, layout, variant)[0]

    first, last = P(clip(g, 1.0)), clip(P(g), 1.0)
    if variant in ("one_sided", "two_sided"):
        assert torch.allclose(first, last, rtol=1e-5, atol=1e-7)
    else:  # the same direction, too short a step
        assert torch.allclose(first / first.norm(), last / last.norm(), atol=1e-6)
        assert first.norm() < 0.95 * last.norm()
    assert torch.allclose(P(clip(g, 1e9)), clip(P(g), 1e9))  # without active clipping the order never matters


def test_an_annihilated_module_makes_even_the_rescaled_projection_not_commute():
    modules = [("a", 8), ("b", 8)]
    v = rankspace.random_direction(modules, 0).vectors
    g = 10 * v
    g[8:] = torch.randn(8, generator=torch.Generator().manual_seed(0))

    def P(x):
        return rankspace.project(x, v, rankspace.Layout.of(modules))[0]

    assert P(clip(g, 1.0)).norm() < 0.5 * clip(P(g), 1.0).norm()


def test_fewer_modules_than_expected_is_an_error(tiny_qwen3):
    model, adapter = attached(tiny_qwen3)
    direction = rankspace.random_direction(adapter.modules, 0)
    hook = rankspace.GradientHook(torch.optim.SGD(adapter.parameters(), lr=1.0), adapter, direction)
    with pytest.raises(RankspaceError, match="0 of 14 modules"):
        hook.before_step()
    backward(model)
    adapter.parameters()[3].grad = None
    with pytest.raises(RankspaceError, match=f"13 of 14 modules, {adapter.modules[3][0]}.delta_S"):
        hook.before_step()
    with pytest.raises(RankspaceError, match="after_step without before_step"):
        hook.after_step()


def test_an_optimizer_that_holds_less_or_more_is_refused(tiny_qwen3):
    model, adapter = attached(tiny_qwen3)
    direction = rankspace.random_direction(adapter.modules, 0)
    parameters = adapter.parameters()
    with pytest.raises(RankspaceError, match=r"does not hold model\.layers\.0"):
        rankspace.GradientHook(torch.optim.SGD(parameters[1:], lr=1.0), adapter, direction)
    norm = model.model.norm.weight
    rankspace.GradientHook(torch.optim.SGD([*parameters, norm], lr=1.0), adapter, direction)  # frozen: harmless
    norm.requires_grad_(True)
    with pytest.raises(RankspaceError, match="also trains 1 other"):
        rankspace.GradientHook(torch.optim.SGD([*parameters, norm], lr=1.0), adapter, direction)


def test_a_form_or_direction_that_cannot_work_is_refused_at_once(tiny_qwen3):
    _, adapter = attached(tiny_qwen3)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1.0)
    direction = rankspace.random_direction(adapter.modules, 0)
    with pytest.raises(RankspaceError, match="unknown"):
        rankspace.GradientHook(optimizer, adapter, direction, variant="half")
    with pytest.raises(RankspaceError, match="no module"):
        rankspace.GradientHook(optimizer, adapter, rankspace.random_direction(adapter.modules[:3], 0))
    adapter.use("summed")
    with pytest.raises(RankspaceError, match="summed"):
        rankspace.GradientHook(optimizer, adapter, direction)


def test_nan_is_an_error_that_names_the_module(tiny_qwen3):
    model, adapter = attached(tiny_qwen3)
    hook = rankspace.GradientHook(
        torch.optim.SGD(adapter.parameters(), lr=1.0), adapter, rankspace.random_direction(adapter.modules, 0)
    )
    backward(model)
    adapter.parameters()[2].grad[0] = float("nan")
    with pytest.raises(RankspaceError, match=adapter.modules[2][0]):
        hook.before_step()


class Engine:
    """Order of calls as in verl's FSDPEngine.optimizer_step: clip, then step; returns the norm before the clipping."""

    def __init__(self, adapter):
        self.parameters = adapter.parameters()
        self.optimizer = torch.optim.SGD(self.parameters, lr=1.0)

    def optimizer_step(self):
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 0.5)
        self.optimizer.step()
        return float(norm)


def test_a_step_of_ones_own_is_projected_before_it_clips():
    """delta = −clip(P(g)): the same by hand, once; what the method answers is passed on."""
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("up_proj", torch.nn.Linear(6, 4))
    adapter = rankspace.attach(model)
    direction = rankspace.random_direction(adapter.modules, 1)
    engine, seen = Engine(adapter), []
    rankspace.hook_into(
        engine, "optimizer_step", rankspace.GradientHook(engine.optimizer, adapter, direction), seen.append
    )
    (model(torch.ones(3, 6)) ** 2).sum().backward()
    g = adapter.parameters()[0].grad.clone()
    wanted, _ = rankspace.project(g, direction.vectors, rankspace.Layout.of(adapter.modules), "one_sided")
    assert engine.optimizer_step() == pytest.approx(float(g.norm()))  # rescaled: the norm is kept
    assert adapter.get_flat() == pytest.approx(-wanted * min(1.0, 0.5 / float(g.norm())), rel=1e-4)
    assert {"cos_mean", "update_cos_mean"} <= set(seen[0])
    with pytest.raises(RankspaceError, match="twice"):
        rankspace.hook_into(engine, "optimizer_step", rankspace.GradientHook(engine.optimizer, adapter, direction))
    with pytest.raises(RankspaceError, match="no method 'step_it'"):
        rankspace.hook_into(engine, "step_it", rankspace.GradientHook(engine.optimizer, adapter, direction))


class Loop:
    """Order of calls as in prime-rl's loop: one call clips, another steps, a scheduler follows."""

    def __init__(self, clips=True):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential()
        self.model.add_module("up_proj", torch.nn.Linear(6, 4))
        self.adapter = rankspace.attach(self.model)
        self.direction = rankspace.random_direction(self.adapter.modules, 1)
        self.optimizer, self.clips, self.seen = torch.optim.SGD(self.adapter.parameters(), lr=1.0), clips, []
        hook = rankspace.GradientHook(self.optimizer, self.adapter, self.direction)
        rankspace.hook_into(self.optimizer, "step", hook, self.seen.append, clip=(self, "clip"))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)  # binds `step` anew

    def clip(self, limit):
        return float(torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), limit))

    def backward(self):
        self.optimizer.zero_grad()
        (self.model(torch.ones(3, 6)) ** 2).sum().backward()
        return self.adapter.parameters()[0].grad.clone()


@pytest.mark.parametrize("clips", [True, False])
def test_a_loop_that_clips_and_steps_in_two_calls_is_projected_before_the_first(clips):
    loop = Loop()
    g = loop.backward()
    wanted, _ = rankspace.project(g, loop.direction.vectors, rankspace.Layout.of(loop.adapter.modules), "one_sided")
    limit = 0.5 if clips else float("inf")
    if clips:
        assert loop.clip(limit) == pytest.approx(float(g.norm()))
    loop.optimizer.step()
    loop.scheduler.step()
    assert loop.adapter.get_flat() == pytest.approx(-wanted * min(1.0, limit / float(g.norm())), rel=1e-4)
    assert len(loop.seen) == 1 and {"cos_mean", "update_cos_mean"} <= set(loop.seen[0])


def test_clipping_twice_without_a_step_is_an_error():
    loop = Loop()
    loop.backward()
    loop.clip(0.5)
    with pytest.raises(RankspaceError, match=r"clip was called twice without SGD.step between"):
        loop.clip(0.5)


def test_a_step_that_raises_leaves_nothing_behind():
    loop = Loop()
    loop.backward()
    loop.clip(1.0)
    with pytest.raises(TypeError):
        loop.optimizer.step(closure=3)
    loop.backward()
    loop.clip(1.0)
    loop.optimizer.step()
    assert len(loop.seen) == 1


def test_nothing_is_hooked_where_one_of_the_two_calls_is_missing():
    loop = Loop()
    optimizer = torch.optim.SGD(loop.adapter.parameters(), lr=1.0)
    hook = rankspace.GradientHook(optimizer, loop.adapter, loop.direction)
    with pytest.raises(RankspaceError, match="Loop has no method 'clip_it'"):
        rankspace.hook_into(optimizer, "step", hook, clip=(loop, "clip_it"))
    assert not getattr(optimizer.step, "_rankspace_hooked", False)
