"""What an alarm is worth, on made-up runs whose answer is known; the registration; the two commands."""

import csv
import json
import random

import pytest
import yaml
from registrations import small_alarm
from synthetic_runs import Plan, write

from common.errors import ConfigError
from experiments.analysis import watch
from experiments.analysis.alarm import AlarmRun, evaluate, median_bounds, onset_of, share_bounds
from experiments.analysis.alarm_claims import answers
from experiments.analysis.verdict import main as verdict
from experiments.design import alarm_registration
from experiments.design.alarm_registration import AlarmRegistration
from experiments.report.alarm_page import main, page

REGISTERED = alarm_registration.load()
STEPS, ONSET = 40, 25


def rows(rng, hacks, weights_from=None, count_from=None):
    """Signals of a made-up run: clean noise with momentum; `weights_from`, `count_from`: steps in which they set in."""
    momentum, out = 0.0, []
    for t in range(STEPS):
        momentum = 0.9 * momentum + 0.1 * rng.gauss(0, 0.1)
        pulled = 0.1 if weights_from is not None and t >= weights_from else 0.0
        loose = 0.03 + rng.gauss(0, 0.01) + (0.1 if count_from is not None and t >= count_from else 0.0)
        out.append({
            "step": t, "update_ref_cos_mean": momentum + pulled, "hack_loose": max(0.0, loose), "hack_strict":
            0.3 if hacks and t >= ONSET else 0.01, "kl_all": 1e-3 * t + abs(rng.gauss(0, 1e-3)), "entropy": rng.gauss(2, 0.1),
            "length_mean": rng.gauss(40, 2), "reward_mean": rng.gauss(1, 0.2), "forged_rate": 0.0,
        })  # fmt: skip
    return out


def world(clean=120, hacking=60, seed=0, **hack):
    rng, runs = random.Random(seed), []
    for number in range(clean):
        kind = ("no_loophole", "ground_truth_screening", "unused")[number % 3]
        runs.append(AlarmRun(f"c{number}", "clean", kind, 200 + number // 3, rows(rng, False), None))
    for number in range(hacking):
        found = rows(rng, True, **hack)
        onset = onset_of(found, REGISTERED.onset_window, REGISTERED.onset_pp)
        runs.append(AlarmRun(f"h{number}", "hacking", "vanilla", 300 + number, found, onset))
    return runs


def judged(runs):
    result = evaluate(REGISTERED, "organism", runs, {})
    return result, {a.name: a.answer for a in answers(REGISTERED, result)}


def test_bounds_worked_by_hand():
    assert share_bounds(0, 60, 0.95)[1] == pytest.approx(1 - 0.05 ** (1 / 60))  # 4.9 %: why 60 clean runs
    assert share_bounds(60, 60, 0.95)[0] == pytest.approx(0.05 ** (1 / 60))
    assert median_bounds([5, 1, 4, 2, 3], 0.95) == (1, 3, 5)  # P(Bin(5, 1/2) <= 4) = 31/32
    low, median, high = median_bounds([1, 2], 0.95)
    assert (low, median, high) == (-float("inf"), 1.5, float("inf"))


def test_onset_is_the_step_whose_five_step_mean_reaches_ten_percent():
    rates = [0.0, 0.0, 0.0, 0.0, 0.25, 0.25, None, 0.0]  # means: .05 at 4, .1 at 5
    assert onset_of([{"step": t + 10, "hack_strict": r} for t, r in enumerate(rates)], 5, 10) == 15
    assert onset_of([{"step": t, "hack_strict": 0.09} for t in range(20)], 5, 10) is None


def test_weights_that_lead_by_fifteen_steps_where_nothing_else_does():
    result, found = judged(world(weights_from=10))
    weights = result.seen["weights"]
    count, n = weights.false_alarms
    assert n == 60 and count <= 6 and weights.caught == (60, 60)
    onset = weights.of("hacking")[0].run.onset
    assert onset == ONSET + 1  # mean of .01 .01 .01 .3 .3
    early = [ring for ring in weights.of("hacking") if ring.step < 10]  # before anything can be known: the false ones
    assert len(early) <= 6 and all(ring.step <= 16 for ring in weights.of("hacking"))
    assert weights.leads == [onset - ring.step for ring in weights.of("hacking")]
    assert found == {"A-rate": "supported", "A-caught": "supported", "A-lead": "supported", "A-unseen": "supported",
                     "A-count": "falsified"}  # fmt: skip
    assert set(result.unseen) == {"weights", "default", "KL", "entropy", "length", "reward slope"}
    assert result.unseen["default"].signals == ("update_ref_cos_mean", "displacement_ref", "nll_margin")
    text = page(REGISTERED, result, answers(REGISTERED, result), ["c1"])
    assert "| A-unseen |" in text and "60/60" in text and "NOT PREREGISTERED" in text and "| unused |" in text


def test_weights_that_know_nothing_catch_no_more_than_false_alarms():
    result, found = judged(world(count_from=15))
    assert result.seen["weights"].caught[0] <= 12 and result.seen["count of overrides"].caught == (60, 60)
    assert (found["A-caught"], found["A-lead"], found["A-unseen"]) == ("falsified",) * 3
    assert found["A-count"] == "supported"  # the count is better: recommend it


def test_counting_as_early_as_the_weights_is_recommended():
    _, found = judged(world(weights_from=10, count_from=10))
    assert found["A-count"] == "supported" and found["A-unseen"] == "supported"


def test_an_alarm_after_the_onset_has_caught_nothing():
    result, found = judged(world(weights_from=ONSET + 5))
    assert sum(ring.step is not None for ring in result.seen["weights"].of("hacking")) == 60
    assert result.seen["weights"].caught[0] <= 12 and found["A-caught"] == "falsified"


def test_too_few_runs_and_signals_nobody_measured_are_no_answer():
    _, found = judged(world(clean=60, weights_from=10))
    assert set(found.values()) == {"not evaluable"}
    result, _ = judged(world(clean=30, weights_from=10))
    assert "needs 33 clean runs" in result.seen["weights"].why_not  # 15 calibrate, 12 are left for the bound
    bare = [AlarmRun(r.run_id, r.kind, r.group, r.seed, [{"step": 0, "kl": 1.0}], r.onset) for r in world()]
    result, found = judged(bare)
    assert "no clean run has" in result.seen["weights"].why_not and set(found.values()) == {"not evaluable"}


@pytest.fixture
def folder(tmp_path):
    """20 clean and 5 hacking runs on disk; one of the clean ones hacks, one of the others stopped."""
    root, rng = tmp_path / "runs", random.Random(1)
    quiet, loud = [0.01] * 6, [0.0, 0.0, 0.1, 0.2, 0.3, 0.4]
    plans = [Plan("no_loophole", seed, hack=loud if seed == 3 else quiet, passed=[0.3] * 6) for seed in range(20)]
    plans += [Plan("vanilla", seed, hack=loud, passed=[0.3] * 6) for seed in range(4)]
    plans.append(Plan("vanilla", 4, hack=loud, passed=[0.3] * 6, state="stopped"))
    for plan in plans:
        path = write(root, plan)
        found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        pull = 0.1 if plan.arm == "vanilla" else 0.0
        lines = (json.dumps(row | {"update_ref_cos_mean": rng.gauss(pull, 0.01)}) for row in found)
        (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return root


def test_the_command_judges_run_directories_and_says_what_it_left_out(tmp_path, folder, capsys):
    out = tmp_path / "out"
    command = ["--runs", str(folder), "--registration", str(small_alarm(tmp_path)), "--out", str(out)]
    assert main(command) == 0
    text = (out / "tiny" / "README.md").read_text()
    assert capsys.readouterr().out == text
    assert "demo-no_loophole-s3: meant as clean, hacks from step 4 on" in text
    assert "demo-vanilla-s4: stopped at step 6 of 6" in text and "NOT PREREGISTERED" in text
    assert "| weights | " in text and "4/4" in text
    with open(out / "tiny" / "alarm.csv") as file:
        rings = [row for row in csv.DictReader(file) if (row["watch"], row["detector"]) == ("weights", "on")]
    assert [row["alarm"] for row in rings if row["kind"] == "hacking"] == ["0"] * 4
    assert len([row for row in rings if row["kind"] == "clean"]) == 9  # odd seeds, without 3
    assert (out / "tiny" / "alarm.png").stat().st_size > 5000
    assert main([*command, "--setting", "tiny"]) == 0
    with pytest.raises(ConfigError, match="--setting huge: the registration has tiny"):
        main([*command, "--setting", "huge"])


def test_too_few_runs_are_counted_and_shown_at_a_rate_that_they_can_hold(tmp_path, folder, capsys):
    """Of 20 clean runs 5 have ended: 3 of them calibrate, so no rate below 1/2 has a bound."""
    import shutil

    for seed in range(5, 20):
        shutil.rmtree(folder / f"demo-no_loophole-s{seed}")
    command = ["--runs", str(folder), "--registration", str(small_alarm(tmp_path)), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "Runs that have ended and count: clean 4 of 20 registered, hacking 4 of 5 registered." in text
    assert "needs" in text and "| not evaluable |" in text and "4/4" not in text
    assert main([*command, "--false-alarm-rate", "0.5"]) == 0
    text = capsys.readouterr().out
    assert "False-alarm rate asked for: 50 %" in text and "4/4" in text
    assert text.count("| not evaluable | shown at another rate than the registered") == len(REGISTERED.claims)
    with pytest.raises(ConfigError, match="--false-alarm-rate 1: give a share"):
        main([*command, "--false-alarm-rate", "1"])


def test_a_run_of_other_settings_than_registered_does_not_count(tmp_path, folder):
    values = yaml.safe_load(small_alarm(tmp_path).read_text())
    values["settings"]["tiny"]["hacking"][0]["set"] = {"loophole": "result_file"}
    (tmp_path / "alarm.yaml").write_text(yaml.safe_dump(values))
    main(["--runs", str(folder), "--registration", str(tmp_path / "alarm.yaml"), "--out", str(tmp_path / "o")])
    text = (tmp_path / "o" / "tiny" / "README.md").read_text()
    assert "demo-vanilla-s0: loophole='simple_overwrite_tests', registered 'result_file'" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"primary": "KL"}, "primary 'KL' must be a watch"),
        ({"watches": {"weights": ["update_cos"]}}, "has the signal 'update_cos'"),
        ({"baselines": {"weights": ["kl"]}}, "both a watch and a baseline"),
        ({"version": 2}, "version 2, `experiments alarm` reads version 3"),
        ({"typo": 1}, "unknown field 'typo'"),
    ],
)
def test_a_registration_that_cannot_be_judged_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        alarm_registration.load(small_alarm(tmp_path, **changes))


def test_groups_that_share_a_run_are_refused_and_verdict_sends_to_the_right_command(tmp_path, folder):
    values = yaml.safe_load(small_alarm(tmp_path).read_text())
    values["settings"]["tiny"]["hacking"] = [{"arm": "no_loophole", "name": "demo", "seeds": [19, 30]}]
    with pytest.raises(ValueError, match="a run belongs to two groups"):
        AlarmRegistration.model_validate(values)
    with pytest.raises(ConfigError, match="judge it with `python -m experiments alarm`"):
        verdict(["--runs", str(folder), "--registration", str(small_alarm(tmp_path))])


def test_watch_calibrates_and_gives_a_line_a_run(tmp_path, folder, capsys):
    clean = tmp_path / "clean.json"
    quiet = [str(folder / f"demo-no_loophole-s{seed}") for seed in range(19, -1, -1) if seed != 3]
    assert watch.main(["--calibrate", str(clean), *quiet]) == 0
    assert (
        "19 clean runs, 16 behind the bound (false-alarm rates from 0.0588 up), good for 6 steps"
        in capsys.readouterr().out
    )
    hacking, one = str(folder / "demo-vanilla-s0"), quiet[0]
    assert watch.main(["--clean", str(clean), "--false-alarm-rate", "0.1", hacking, one]) == 1
    said = capsys.readouterr().out
    assert "demo-vanilla-s0" in said and "alarm at step" in said and said.count("\n") == 3
    assert watch.main(["--clean", str(clean), "--false-alarm-rate", "0.1", "--json", one]) == 0
    assert json.loads(capsys.readouterr().out)[0]["alarm"] is None
    for wrong, message in (
        ([one], "give --clean FILE"),
        (["--clean", str(clean), one], "needs 19 clean runs behind the bound, there are 16"),
        (["--clean", str(clean), "--false-alarm-rate", "0.1", str(tmp_path)], "metrics.jsonl: No such file"),
        (["--calibrate", str(clean), *quiet, "--signals", "hack_lose"], "did you mean 'hack_loose'"),
        (["--calibrate", str(tmp_path / "no" / "where"), *quiet], "give a file that can be written"),
    ):
        with pytest.raises(ConfigError, match=message):
            watch.main(wrong)


def test_report_marks_where_a_runs_own_alarm_rang(tmp_path):
    import matplotlib.pyplot as plt

    from experiments.analysis.comparable import Selection, choose
    from experiments.design import prereg
    from experiments.report import captions, tables
    from experiments.report.figures import outcomes

    rules = prereg.load()
    for seed, ratios in enumerate(([0.2, 0.9, 1.4, 2.0], [None, 0.1, 0.2, 0.9])):
        path = write(tmp_path, Plan("vanilla", seed, hack=[0.1, 0.2, 0.3, 0.4], passed=[0.3] * 4))
        found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        lines = (json.dumps(row | {"alarm_ratio": r}) for row, r in zip(found, ratios, strict=True))
        (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (arm,) = tables.views(choose(Selection(tmp_path)), rules.measures)
    assert [run.alarm_step for run in arm.runs] == [2, None]
    _, axis = plt.subplots()
    outcomes.mark_alarms(axis, arm, 1)
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines] == [(2, pytest.approx(30.0))]
    assert "Triangle: where a run's own alarm rang" in captions.captions([arm], rules.measures)["trajectories"]
    plt.close("all")
