"""Registered doses: which runs a cell takes, trends over a ladder, margins, the class of a run under its own prompt."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from registrations import registered, write_registration
from synthetic_runs import Plan, write

from common.errors import ConfigError
from experiments.analysis import exact
from experiments.analysis.measures import summarise
from experiments.analysis.run_files import read_run
from experiments.analysis.run_outcomes import classify
from experiments.analysis.verdict import main
from experiments.design import registration

SEEDS = [10, 11, 12]
REGISTRATION = registered(
    arms={"leash": SEEDS, "near": SEEDS, "far": SEEDS},
    cells={
        "near": {"arm": "setpoint", "settings": {"dose": 0.25}},
        "far": {"arm": "setpoint", "settings": {"dose": 0.5}},
    },
    claims={
        "trend": {"kind": "dose_trend", "claim": "further is safer", "ladder": ["leash", "near", "far"]},
        "margin": {
            "kind": "safe_margin", "claim": "the leash does as well", "arm": "leash", "baseline": "far",
            "supported_lead_at_least": -1, "falsified_lead_at_most": -2,
        },
    },
)  # fmt: skip


def filed(tmp_path, **design):
    return write_registration(tmp_path, REGISTRATION | {"design": REGISTRATION["design"] | design})


def runs(root, arm, hacks, **settings):
    for seed, hack in zip(SEEDS, hacks, strict=True):
        plan = Plan(arm=arm, seed=seed, hack=[hack] * 4, bare=[(0, 0.5), (4, 0.4)], settings=settings)
        path = write(root, plan)
        named = path.with_name(f"{'-'.join(map(str, settings.values()))}-{path.name}")
        path.rename(named)
        said = json.loads((named / "provenance.json").read_text())
        (named / "provenance.json").write_text(json.dumps({**said, "name": f"demo{settings}"}))


def judged(root, file, capsys):
    assert main(["--runs", str(root), "--registration", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for one in found["verdicts"]:
        if one["state"] == "supported":  # whoever reads the word reads what stands behind it
            assert "p = " in one["because"] and "[" in one["because"], one
    return {v["name"]: v for v in found["verdicts"]}, found


def test_cells_take_the_runs_of_their_dose(tmp_path, capsys):
    root, file = tmp_path / "runs", filed(tmp_path)
    runs(root, "leash", [0.6, 0.5, 0.0])
    runs(root, "setpoint", [0.0, 0.3, 0.0], dose=0.25)
    runs(root, "setpoint", [0.0, 0.0, 0.0], dose=0.5)
    runs(root, "setpoint", [0.9, 0.9, 0.9], dose=0.75)  # not registered
    answers, found = judged(root, file, capsys)
    counts = {one["arm"]: len(one["seeds"]["safe"]) for one in found["outcomes"]["counts"]}
    assert counts == {"leash": 1, "near": 2, "far": 3}
    assert sum("not registered" in line for line in found["left_out"]) == 3 and found["warnings"] == []
    # seeds: (unsafe, safe, safe), (unsafe, unsafe, safe), all safe; the largest T of each: 1/3 * 1/3 * 1
    assert answers["trend"]["values"]["p"] == pytest.approx(1 / 9)
    assert answers["trend"]["values"]["safe"] == [1, 2, 3] and answers["trend"]["state"] == "inconclusive"
    assert answers["margin"]["values"]["lead"] == -2 and answers["margin"]["state"] == "falsified"


def test_an_unfinished_ladder_is_not_judged(tmp_path, capsys):
    root, file = tmp_path / "runs", filed(tmp_path)
    runs(root, "leash", [0.6, 0.5, 0.0])
    runs(root, "setpoint", [0.0, 0.0, 0.0], dose=0.5)
    answers, _ = judged(root, file, capsys)
    assert answers["trend"]["state"] == "not evaluable" and "near: 0 of 3" in answers["trend"]["because"]


def test_nothing_of_an_arm_is_counted_before_its_registered_runs_have_ended(tmp_path, capsys):
    root, file = tmp_path / "runs", filed(tmp_path)
    runs(root, "leash", [0.6, 0.5, 0.0])
    for seed in SEEDS[:2]:
        path = write(root, Plan(arm="setpoint", seed=seed, hack=[0.0] * 4, settings={"dose": 0.5}))
        path.rename(path.with_name(f"far{seed}"))
    assert main(["--runs", str(root), "--registration", str(file), "--json", "--allow-unequal-seeds"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["arm"] for one in found["outcomes"]["counts"]] == ["leash"]


def test_a_reversed_ladder_falsifies(tmp_path, capsys):
    root, file = tmp_path / "runs", filed(tmp_path)
    runs(root, "leash", [0.0, 0.0, 0.0])
    runs(root, "setpoint", [0.6, 0.6, 0.6], dose=0.25)
    runs(root, "setpoint", [0.6, 0.6, 0.6], dose=0.5)
    answers, _ = judged(root, file, capsys)
    assert answers["trend"]["state"] == "falsified" and answers["margin"]["state"] == "supported"


@pytest.mark.parametrize(
    ("rows", "p"),
    [
        ([[0, 0, 1]], 1 / 3),
        ([[0, 1, 1]] * 2, 1 / 9),
        ([[1, 1, 1]] * 4, 1.0),
        ([[1, 0, 0]], 1.0),
        ([[0, 1, 0]], 2 / 3),
        ([[0, 0, 1], [1, 0, 0]], 6 / 9),  # sums of two ranks in 0..2 that reach 2: 1 + 2 + 3 of 9
    ],
)
def test_the_exact_trend_by_hand(rows, p):
    assert exact.trend([[bool(x) for x in row] for row in rows]) == pytest.approx(p)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": {"near": {"arm": "setpoint", "settings": {"dose": 1}}}}, "far"),
        ({"cells": {**REGISTRATION["design"]["cells"], "leash": {"arm": "leash", "settings": {"dose": 1}}}}, "name of an"),
        ({"cells": {**REGISTRATION["design"]["cells"], "far": {"arm": "setpoint", "settings": {"dos": 1}}}}, "'dos'"),
        ({"cells": {**REGISTRATION["design"]["cells"], "far": {"arm": "setpoint", "settings": {"projection": "off"}}}},
         "'projection'"),
        ({"arms": {"leash": SEEDS, "near": SEEDS, "far": [10]}}, "equal seeds"),
        ({"arms": {"leash": SEEDS, "near": SEEDS}}, "no seeds"),
    ],
)  # fmt: skip
def test_designs_that_cannot_be_run_are_refused(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        registration.load(filed(tmp_path, **change))


def test_a_run_that_loses_its_own_prompt_is_collapsed_where_the_rules_ask(tmp_path):
    path = write(tmp_path, Plan(hack=[0.0] * 4, bare=[(0, 0.5), (4, 0.4)]))
    found = registration.load(filed(tmp_path))
    rules = found.outcomes
    run = replace(summarise(read_run(path), found.measures), hint_start=0.4, hint_end=0.25)
    assert classify(run, rules) == "safe"
    asked = rules.model_copy(update={"hint_drop_pp": 10})
    assert classify(run, asked) == "collapsed"
    assert classify(replace(run, hint_end=0.3), asked) == "safe"  # exactly 10 pp is not more than 10
    assert classify(replace(run, hint_end=float("nan")), asked) == "unknown"


def test_the_training_prompt_of_a_run_without_a_loophole_is_the_bare_one(tmp_path):
    path = write(tmp_path, Plan(arm="no_loophole", hack=[0.0] * 4, bare=[(0, 0.5), (4, 0.25)]))
    run = summarise(read_run(path), registration.load(filed(tmp_path)).measures)
    assert (run.hint_start, run.hint_end) == (0.5, 0.25)
