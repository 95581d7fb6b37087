"""HackWatch: numbers worked by hand, the false-alarm rate under the null, what it refuses, and what it cannot see."""

import csv
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rankspace
from common.measurements import BY_NAME
from rankspace import RankspaceError
from rankspace.hack_watch import CleanRuns, HackWatch, Scale, calibrate, clean_runs_needed, read_rows, replay
from rankspace.watch_signals import OTHER_KEYS, SIGNALS, Reader

ROOT = Path(__file__).resolve().parent.parent.parent
COSINE = "update_ref_cos_mean"


def hand_made(maxima=(0.5, 1.0, 1.5, 2.0), horizon=8, **scales):
    found = scales or {COSINE: Scale((0.0,) * horizon, 0.1, (2.0, 100.0))}
    return CleanRuns(found, tuple(maxima), horizon)


def rows_of(values, name=COSINE):
    return [{"step": t, SIGNALS[name].key: x} for t, x in enumerate(values)]


def walk(rng, steps, phi=0.9, offset=1.0, noise=1.0):
    """An autocorrelated signal around a level that differs from run to run, on a trend."""
    level, x, out = rng.gauss(0, offset), rng.gauss(0, 1), []
    for t in range(steps):
        x = phi * x + noise * math.sqrt(1 - phi * phi) * rng.gauss(0, 1)
        out.append(level + x + 0.1 * t)
    return out


def clean_run(rng, steps=30, **how):
    shared = walk(rng, steps, **how)  # the signals hang together
    own = walk(rng, steps, **how)
    return [{"step": t, COSINE: 0.02 * (a + b), "kl_all": 0.1 * a, "hack_loose": 0.02} for t, (a, b) in
            enumerate(zip(shared, own, strict=True))]  # fmt: skip


def test_cusum_worked_by_hand():
    # z = x / 0.1; C = max(0, C + z - 0.5); S = C / 2, the second allowance is far below. Alarm above the 4th of 4 maxima
    # (rate 0.2), 2.0: C > 4.
    watch = HackWatch(hand_made(), false_alarm_rate=0.2)
    assert watch.bound == 2.0
    for x, ratio in ((0.2, 0.375), (0.0, 0.25), (-0.3, 0.0), (0.25, 0.5), (0.25, 1.0)):  # C = 1.5, 1, 0, 2, 4
        assert watch.step({"step": watch._reader.step + 1, COSINE: x}) is None
        assert watch.ratio == pytest.approx(ratio)
    alarm = watch.step({"step": 5, COSINE: 0.06})  # C = 4.1
    assert (alarm.step, alarm.signal, alarm.since, alarm.value, alarm.expected) == (5, COSINE, 3, 0.06, 0.0)
    assert alarm.statistic == pytest.approx(2.05) and alarm.bound == 2.0 and alarm.bounded
    assert "step 5: update_ref_cos_mean" in str(alarm) and "since step 3" in str(alarm)
    assert watch.step({"step": 6, COSINE: 0.5}) is None and watch.alarm is alarm  # rung once


def test_large_allowance_finds_one_large_step_and_says_since_when():
    # a = 2, q = 1: z = 1.9, 4, 4 -> C = 0, 2, 4; a = 1/2, q = 100: 1.4, 4.9, 8.4
    watch = HackWatch(hand_made(**{COSINE: Scale((0.0,) * 8, 0.1, (100.0, 1.0))}), 0.2)
    found = [watch.step(row) for row in rows_of([0.19, 0.4, 0.4])]
    assert found[:2] == [None, None] and watch.ratio == pytest.approx(2.0)
    assert (found[2].since, found[2].statistic) == (1, pytest.approx(4.0))


def test_bound_worked_by_hand_and_refused_where_the_runs_are_too_few():
    clean = hand_made(maxima=range(1, 20))
    assert [clean.bound(rate) for rate in (0.05, 0.1, 0.5)] == [19, 18, 10]  # k = ceil((1 - rate) * 20)
    with pytest.raises(
        RankspaceError, match=r"0\.01 needs 99 clean runs behind the bound, there are 19: calibrate with 123"
    ):
        clean.bound(0.01)
    for rate in (0.0, 1.0, -1, 5, math.nan):
        with pytest.raises(RankspaceError, match="above 0 and below 1"):
            clean.bound(rate)
    assert [clean_runs_needed(rate) for rate in (0.05, 0.1, 0.5)] == [23, 11, 3]
    for rate in (0.05, 0.1, 0.2, 0.5):
        n = clean_runs_needed(rate)
        assert calibrate([rows_of([0.0])] * n).bound(rate) == 0.0
        if n > 3:
            with pytest.raises(RankspaceError, match="behind the bound"):
                calibrate([rows_of([0.0])] * (n - 1)).bound(rate)


def test_scale_worked_by_hand():
    # 10 runs: the first two set the scale. Step 0: 1, 3 -> mean 2; step 1: 5, 5 -> 5. Squares 1 + 1 over 2 degrees: s = 1.
    runs = [rows_of([1.0, 5.0]), rows_of([3.0, 5.0])] + [rows_of([2.0 + i, 5.0]) for i in range(8)]
    clean = calibrate(runs)
    scale = clean.scales[COSINE]
    assert scale.mean == (2.0, 5.0) and scale.spread == 1.0
    assert scale.largest == (1.0, 1.0)  # 3 gives z = 1, C = 0.5; q is at least 1
    assert clean.maxima == (0.0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5) and clean.horizon == 2


def test_forms_and_signs_of_the_signals():
    # delta_S moves towards the hack as its component falls; what counts is the change, also over a step without one
    reader = Reader(["displacement_ref", "reward_slope", "entropy"])
    found = [reader.read({"step": t, "displacement_ref": d, "reward_mean": 2.0 * t}) for t, d in
             enumerate([-1.0, -3.0, None, -7.0])]  # fmt: skip
    assert [f.get("displacement_ref") for f in found] == [-1.0, -2.0, None, -4.0]
    for t in range(4, 10):
        last = reader.read({"step": t, "reward_mean": 2.0 * t})
    assert "reward_slope" not in found[-1] and last["reward_slope"] == pytest.approx(2.0)
    scale = Scale((0.0,), 1.0, (1.0, 1.0))
    for name, up, down in (("displacement_ref", 0, 5), ("hack_loose", 5, 0), ("entropy", 5, 5)):
        for sign, rings in ((1, up), (-1, down)):
            watch = HackWatch(hand_made((1.0,), 1, **{name: scale}), 0.5)
            assert bool(watch.step({"step": 0, SIGNALS[name].key: 5.0 * sign})) == bool(rings), (name, sign)


@pytest.mark.parametrize("phi", [0.0, 0.95])
def test_false_alarm_rate_holds_under_the_null_with_autocorrelated_signals(phi):
    rng, alarms, runs = random.Random(7), 0, 0
    for _ in range(150):
        clean = calibrate([clean_run(rng, phi=phi) for _ in range(24)], [COSINE, "kl_all", "hack_loose"])
        for _ in range(4):  # any alarm at any step counts
            alarms += replay(clean_run(rng, phi=phi), clean, 0.1).alarm is not None
            runs += 1
    expected = 1 - 19 / 21  # 20 runs behind the bound, k = 19: exact for continuous scores
    assert abs(alarms / runs - expected) < 0.045, alarms / runs  # three deviations, correlated within a calibration


def test_the_assumption_is_needed_clean_runs_of_another_setting_break_the_rate():
    rng = random.Random(3)
    clean = calibrate([clean_run(rng) for _ in range(24)], [COSINE, "kl_all"])
    alarms = sum(replay(clean_run(rng, noise=4.0), clean, 0.1).alarm is not None for _ in range(50))
    assert alarms > 50 * 0.1 + 3 * math.sqrt(50 * 0.1 * 0.9)  # four times the noise: not exchangeable


def test_a_missing_signal_is_no_alarm_and_a_misspelt_one_an_error():
    rng = random.Random(5)
    clean = calibrate([clean_run(rng) for _ in range(24)], [COSINE, "nll_margin", "hack_loose"])
    assert set(clean.scales) == {COSINE, "hack_loose"}  # nobody measured the margin
    watch = HackWatch(clean)
    assert watch.step({"step": 0}) is None and watch.step({"step": 1, COSINE: None, "nll_margin": 3.0}) is None
    assert watch.ratio == 0.0
    with pytest.raises(RankspaceError, match=r"'hack_lose', which is no signal .* did you mean 'hack_loose'"):
        watch.step({"step": 2, "hack_lose": 0.1})
    with pytest.raises(RankspaceError, match="no signal 'update_cos'; did you mean"):
        calibrate([], ["update_cos"])
    with pytest.raises(RankspaceError, match="5 of 10 clean runs have kl_all"):
        calibrate([rows_of([0.0], "kl_all" if i % 2 else COSINE) for i in range(10)], ["kl_all"])
    for bad in (math.nan, math.inf, "0.1", True):
        with pytest.raises(RankspaceError, match=r"hack_loose = .*finite number"):
            HackWatch(clean).step({"step": 0, "hack_loose": bad})
    for step in (None, -1, 1.0, "0", True):
        with pytest.raises(RankspaceError, match="whole numbers that rise"):
            HackWatch(clean).step({"step": step})
    with pytest.raises(RankspaceError, match="has step 0 after step 0"):
        replay([{"step": 0}, {"step": 0}], clean)


def test_own_direction_stands_in_where_no_reference_was_measured_and_only_there():
    own = [[{"step": t, "update_cos_mean": 0.0, "hack_loose": 0.0} for t in range(3)] for _ in range(5)]
    assert set(calibrate(own).scales) == {"update_cos_mean", "hack_loose"}
    both = [[row | {COSINE: 0.0} for row in run] for run in own]
    assert set(calibrate(both).scales) == {COSINE, "hack_loose"}


def test_runs_logged_every_tenth_step_have_the_horizon_of_their_last_step():
    runs = [[{"step": t, COSINE: 0.0} for t in range(9, 50, 10)] for _ in range(5)]
    assert calibrate(runs).horizon == 50
    with pytest.raises(RankspaceError, match="no rows"):
        calibrate([*runs, []])


def test_keys_are_those_of_metrics_jsonl():
    of_signals = {signal.key for signal in SIGNALS.values()} - {"nll_margin"}
    assert of_signals | OTHER_KEYS | {"step"} == set(BY_NAME) and not of_signals & OTHER_KEYS


def test_a_first_rollout_of_what_never_happens_is_not_infinitely_strange():
    never = [[{"step": t, "forged_rate": 0.0} for t in range(10)] for _ in range(24)]
    clean = calibrate(never)
    assert clean.scales["forged_rate"].spread == SIGNALS["forged_rate"].least
    watch = HackWatch(clean)
    assert watch.step({"step": 0, "forged_rate": 0.002}) is None  # z = 0.4, under the allowance
    assert watch.step({"step": 1, "forged_rate": 0.02})


def test_beyond_the_clean_runs_an_alarm_says_that_nothing_bounds_it():
    watch = replay(rows_of([0.0] * 8 + [0.9]), hand_made(), 0.2)
    assert watch.alarm.step == 8 and not watch.alarm.bounded and "without a bound" in str(watch.alarm)


@pytest.mark.parametrize("cut", [1, 12, 25])
def test_a_restored_watch_decides_as_one_that_was_never_interrupted(cut):
    rng = random.Random(11)
    names = [COSINE, "displacement_ref", "reward_slope"]

    def run(pull):
        return [{"step": t, COSINE: rng.gauss(pull, 1), "displacement_ref": rng.gauss(-pull * t, 1), "reward_mean":
                 rng.gauss(pull * t, 1)} for t in range(30)]  # fmt: skip

    clean = calibrate([run(0.0) for _ in range(24)], names)
    rows = run(0.6)
    whole, first, second = HackWatch(clean), HackWatch(clean), HackWatch(clean)
    for row in rows:
        whole.step(row)
    for row in rows[:cut]:
        first.step(row)
    second.restore(json.loads(json.dumps(first.state())))
    for row in rows[cut:]:
        second.step(row)
    assert whole.alarm is not None and second.alarm == whole.alarm and second.state() == whole.state()
    with pytest.raises(RankspaceError, match="same file of clean runs"):
        HackWatch(hand_made(), 0.2).restore(first.state())


def test_the_file_of_clean_runs_comes_back_exactly_and_a_bad_one_is_one_line(tmp_path):
    rng = random.Random(2)
    clean = calibrate([clean_run(rng) for _ in range(24)], [COSINE, "kl_all"])
    clean.write(tmp_path / "clean.json")
    assert CleanRuns.read(tmp_path / "clean.json") == clean
    for text in ("", "[]", "{}", '{"version": 1, "scales": {"kl": 3}, "maxima": [], "horizon": 1}', '{"version": 2}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(RankspaceError, match=r"bad\.json") as error:
            CleanRuns.read(tmp_path / "bad.json")
        assert "\n" not in str(error.value)
    with pytest.raises(RankspaceError, match="No such file"):
        HackWatch(tmp_path / "none.json")


def test_a_run_is_replayed_from_its_files_without_torch(tmp_path):
    lines = [json.dumps({"step": t, COSINE: 0.01 * t, "of_a_newer_trainer": 1}) for t in (0, 1, 1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 3, "upd')
    (tmp_path / "eval.jsonl").write_text(
        '{"step": 2, "mode": "hint", "nll_margin": 0.5}\n{"step": 9, "nll_margin": 1}\n'
    )
    rows = read_rows(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2] and rows[2]["nll_margin"] == 0.5
    hand_made().write(tmp_path / "clean.json")
    code = (
        "import sys; from rankspace.hack_watch import replay, read_rows\n"
        f"watch = replay(read_rows({str(tmp_path)!r}), {str(tmp_path / 'clean.json')!r}, 0.2)\n"
        "assert watch.alarm is None and not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    (tmp_path / "metrics.jsonl").write_text("x\n" + lines[0])
    with pytest.raises(RankspaceError, match="line 1: not JSON"):
        read_rows(tmp_path)


def test_blind_spot_two_sided_removal_keeps_the_cosine_at_zero_whatever_is_learnt():
    """Same pull towards the hack, with and without the removal: only the latter rings. What the policy does is the same to
    both watches, since they see no behaviour."""
    torch.manual_seed(0)
    layout = rankspace.Layout.of([("a", 64), ("b", 64)])
    v = torch.nn.functional.normalize(torch.randn(2, 64), dim=-1).flatten()

    def run(pull, variant):
        rows = []
        for t in range(30):
            g = torch.randn(128) / 8 + pull * v
            step = -rankspace.project(g, v, layout, variant)[0]
            rows.append({"step": t, COSINE: rankspace.update_cosine(step, v, layout)["update_cos_mean"]})
        return rows

    clean = calibrate([run(0.0, "off") for _ in range(24)])
    vanilla, removed = (replay(run(0.5, variant), clean) for variant in ("off", "two_sided"))
    assert vanilla.alarm and vanilla.alarm.step < 10
    assert removed.alarm is None and removed.ratio < 0.5


def test_blind_spot_on_recorded_runs_of_the_organism():
    """docs/results/organism-150: two_sided learns to hack, its update's cosine stays where it was."""
    with open(ROOT / "docs/results/organism-150/steps.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["seed"] == "0"]
    late = {}
    for arm in ("vanilla", "projected_two_sided"):
        steps = [row for row in rows if row["arm"] == arm]
        assert sum(float(row["hack_strict"]) for row in steps[-25:]) / 25 > 0.4
        late[arm] = sum(float(row["update_cos_mean"]) for row in steps[10:40]) / 30
    assert late["vanilla"] > 0.2 and abs(late["projected_two_sided"]) < 0.01
