"""Where delta_S stands along v: by hand, and in the hook around torch optimizers."""

import pytest
import torch

import rankspace
from rankspace import Layout, RankspaceError
from rankspace.hook_base import Intervention
from rankspace.position import placed, position_metrics, shifted, without_component

LAYOUT = Layout.of([("a", 2), ("b", 3)])
V = torch.tensor([0.6, 0.8, 0.0, 0.0, -1.0])
DELTA = torch.tensor([3.0, 4.0, 2.0, 1.0, 2.0])  # a = 5 (away from the hack) and -2 (towards it)
IDS = torch.arange(1, 13)[None]


@pytest.mark.parametrize(
    ("placement", "dose", "ramp", "step", "want", "moved"),
    [
        ("leash", 0.0, 1, 0, [0, 0, 2, 1, 0], [True, True]),
        ("leash", 1.0, 1, 0, [0.6, 0.8, 2, 1, 0], [True, True]),
        ("leash", 6.0, 1, 0, [3, 4, 2, 1, 0], [False, True]),
        ("setpoint", 2.0, 1, 7, [1.2, 1.6, 2, 1, -2], [True, True]),
        ("setpoint", 2.0, 4, 0, [0.3, 0.4, 2, 1, -0.5], [True, True]),
        ("setpoint", 2.0, 4, 2, [0.9, 1.2, 2, 1, -1.5], [True, True]),
        ("shift", 2.0, 1, 0, [3, 4, 2, 1, 2], [False, False]),
    ],
)
def test_placements_by_hand(placement, dose, ramp, step, want, moved):
    out, where = placed(DELTA, V, LAYOUT, placement, dose, ramp, step)
    assert out.tolist() == pytest.approx(want, abs=1e-6) and where.tolist() == moved
    assert out.dtype == torch.float32


def test_the_start_of_a_shift_and_what_is_left_of_the_moment_by_hand():
    assert shifted(V, LAYOUT, 2.0).tolist() == pytest.approx([1.2, 1.6, 0, 0, -2])
    out = without_component(DELTA, V, LAYOUT, torch.tensor([False, True]))
    assert out.tolist() == pytest.approx([3, 4, 2, 1, 0]), "only where the placement acted"


def test_position_metrics_by_hand():
    update = torch.tensor([0.8, -0.6, 0.0, 0.0, 1.0])  # across v in a, wholly towards the hack in b
    other = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    found = position_metrics(DELTA, update, other, V, LAYOUT)
    # against v: cosines -5/5 and +2/3; displacement (5 - 2)/sqrt(2); against the other: (3 + 1)/sqrt(2), -(3/5 + 1/3)/2
    assert found == pytest.approx(
        {
            "delta_norm": 34**0.5, "drift_ref_cos_mean": (-1 + 2 / 3) / 2, "update_ref_cos_mean": 0.5,
            "displacement_ref": 3 / 2**0.5, "displacement_own": 4 / 2**0.5, "drift_cos_mean": -(3 / 5 + 1 / 3) / 2,
        }
    )  # fmt: skip
    assert "displacement_ref" not in position_metrics(DELTA, update, other, None, LAYOUT)


def test_a_dose_per_module_is_the_displacement_over_the_root_of_their_number():
    layout = Layout.of([(f"m{i}", 7) for i in range(9)])
    v = rankspace.random_direction([(f"m{i}", 7) for i in range(9)], 0).vectors
    found = position_metrics(shifted(v, layout, 0.25), torch.zeros(63), v, v, layout)
    assert found["displacement_own"] / 9**0.5 == pytest.approx(0.25) and found["drift_ref_cos_mean"] == pytest.approx(
        -1
    )


def test_what_was_measured_does_not_depend_on_who_was_measured_before():
    """Unit rows are kept for several directions at once; one refreshed in place must not be mistaken for its old self."""
    v, other = V.clone(), torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    first = position_metrics(DELTA, DELTA, v, other, LAYOUT)
    v.neg_()
    second = position_metrics(DELTA, DELTA, v, other, LAYOUT)
    assert second["displacement_own"] == -first["displacement_own"]
    assert second["displacement_ref"] == first["displacement_ref"]


def train(tiny_qwen3, does, steps=4, lr=0.05, optimizer=torch.optim.AdamW, reference=None, resume=None):
    model = tiny_qwen3()
    adapter = rankspace.attach(model)
    direction = rankspace.random_direction(adapter.modules, 3)
    made = optimizer(adapter.parameters(), lr=lr)
    hook = rankspace.GradientHook(made, adapter, direction, does, reference=reference)
    if resume is None:
        hook.start()
    found = []
    for step in range(steps):
        model.zero_grad()
        model(input_ids=(IDS * (step + 3)) % 60, labels=IDS).loss.backward()
        hook.before_step(step)
        made.step()
        found.append(hook.after_step())
    layout = Layout.of(adapter.modules)
    a = (layout.pad(adapter.get_flat()) * layout.pad(direction.vectors)).sum(-1)
    moment = hook._moment()
    along = None if moment is None else (layout.pad(moment) * layout.pad(direction.vectors)).sum(-1)
    return found, a, along, adapter.get_flat()


def test_a_leash_of_zero_holds_every_module_at_zero_after_adamw(tiny_qwen3):
    found, a, along, _ = train(tiny_qwen3, Intervention("leash"))
    assert a.abs().max() < 1e-8 and along.abs().max() < 1e-8
    assert all(abs(m["displacement_own"]) < 1e-7 and m["placed_share"] == 1.0 for m in found)
    assert found[-1]["delta_norm"] > 0.1, "everything else trains on"
    _, free, _, _ = train(tiny_qwen3, "off")
    assert free.abs().max() > 1e-3, "without the leash it would have moved"


def test_a_leash_lets_a_module_go_as_far_as_its_dose_and_no_further(tiny_qwen3):
    _, free, _, _ = train(tiny_qwen3, "off")
    dose = float(free.max()) / 2
    _, a, _, _ = train(tiny_qwen3, Intervention("leash", dose=dose))
    assert a.min() > -1e-8 and a.max() == pytest.approx(dose, abs=1e-7)
    assert ((a > 1e-6) & (a < dose - 1e-6)).any(), "between the ends nobody holds it"


def test_a_setpoint_rises_with_the_step_number_and_stays(tiny_qwen3):
    found, a, along, _ = train(tiny_qwen3, Intervention("setpoint", dose=0.3, ramp=3))
    root = 14**0.5
    assert [m["displacement_own"] / root for m in found] == pytest.approx([0.1, 0.2, 0.3, 0.3], abs=1e-6)
    assert a.tolist() == pytest.approx([0.3] * 14, abs=1e-6) and along.abs().max() < 1e-8


def test_a_shift_only_chooses_the_start(tiny_qwen3):
    found, *_ = train(tiny_qwen3, Intervention("shift", dose=0.5), steps=1, lr=1e-6)
    assert found[0]["displacement_own"] == pytest.approx(0.5 * 14**0.5, abs=1e-4)
    assert found[0]["drift_cos_mean"] == pytest.approx(-1.0, abs=1e-4)
    assert "placed_share" not in found[0]


def test_sgd_without_momentum_has_nothing_to_clear(tiny_qwen3):
    _, a, along, _ = train(tiny_qwen3, Intervention("leash"), optimizer=torch.optim.SGD)
    assert along is None and a.abs().max() < 1e-7


def test_an_inactive_step_is_measured_and_left_alone(tiny_qwen3):
    model = tiny_qwen3()
    adapter = rankspace.attach(model)
    direction = rankspace.random_direction(adapter.modules, 3)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.5)
    for does in ("one_sided", "bias", "update", Intervention("leash"), Intervention("setpoint", dose=1.0)):
        adapter.set_flat(torch.zeros(sum(r for _, r in adapter.modules)))
        hook = rankspace.GradientHook(optimizer, adapter, direction, does)
        model.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        raw = rankspace.hook.read_grad(adapter)
        hook.before_step(0, active=False)
        assert torch.equal(rankspace.hook.read_grad(adapter), raw)
        optimizer.step()
        found = hook.after_step()
        assert torch.equal(adapter.get_flat(), -0.5 * raw) and "placed_share" not in found


def test_the_reference_is_measured_and_never_acted_on(tiny_qwen3):
    modules = rankspace.attach(tiny_qwen3()).modules
    reference = rankspace.random_direction(modules, 8)
    found, _, _, end = train(tiny_qwen3, "one_sided", reference=reference)
    alone, _, _, same = train(tiny_qwen3, "one_sided")
    assert torch.equal(end, same)
    layout = Layout.of(modules)
    want = float((layout.pad(end) * layout.pad(reference.vectors)).sum() / 14**0.5)
    assert found[-1]["displacement_ref"] == pytest.approx(want) and "displacement_ref" not in alone[-1]
    wrong = rankspace.random_direction([("elsewhere", 5), *modules[1:]], 0)
    with pytest.raises(RankspaceError, match="module 0 is elsewhere"):
        train(tiny_qwen3, "one_sided", reference=wrong)


def test_a_placement_that_cannot_work_is_refused_at_once(tiny_qwen3):
    with pytest.raises(RankspaceError, match="needs dose >= 0 and ramp >= 1"):
        train(tiny_qwen3, Intervention("leash", dose=-1.0))
    with pytest.raises(RankspaceError, match="needs dose >= 0 and ramp >= 1"):
        train(tiny_qwen3, Intervention("setpoint", dose=1.0, ramp=0))
