"""Dose, time and place from made-up runs: numbers by hand, and nothing compared before a batch has ended."""

from __future__ import annotations

import csv
import json
from itertools import permutations

import numpy as np
import pytest
import torch
from registrations import DOSES, SEEDS, write_registration
from synthetic_runs import Plan, write

import rankspace
from common.cli import EXIT_USER_ERROR
from experiments.__main__ import main
from experiments.analysis import exact, why
from experiments.analysis.run_folders import read_runs
from experiments.design import registration


def run(root, arm, seed, hack, at=0.0, acted=(), settings=None, **more):
    path = write(root, Plan(arm=arm, seed=seed, hack=hack, bare=[(0, 0.5), (4, 0.4)], settings=settings or {}, **more))
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for step, line in enumerate(lines):
        line |= {"displacement_ref": at * (step + 1) / len(lines), "delta_norm": 2.0, "intervened": step in acted}
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def batch(root, far=SEEDS):
    for seed in SEEDS:
        run(root, "leash", seed, [0.1, 0.2, 0.3, 0.5 + seed / 100], acted=range(4))
        run(root, "projected_from", seed, [0.2, 0.4, 0.1, 0.0], at=1.0, acted=(2, 3))
    for seed in far:
        run(root, "setpoint", seed, [0.0, 0.1, 0.0, 0.0], at=2.5, acted=range(4), settings={"dose": 0.5})


def read(path):
    return list(csv.DictReader(path.open()))


@pytest.fixture
def file(tmp_path):
    return write_registration(tmp_path, DOSES)


def test_a_finished_batch_by_hand(tmp_path, file, capsys):
    batch(tmp_path / "runs")
    out = tmp_path / "out"
    assert main(["why", "--runs", str(tmp_path / "runs"), "--registration", str(file), "--out", str(out)]) == 0
    assert "not written" not in capsys.readouterr().out
    dose = {(r["name"], r["seed"]): r for r in read(out / "dose_response.csv")}
    assert float(dose["far", "10"]["displacement_ref"]) == 2.5 and float(dose["leash", "11"]["hack_strict"]) == 0.61
    trend = {r["quantity"]: r for r in read(out / "trend.csv")}
    assert float(trend["hack_strict"]["p_page"]) == 0.25 and trend["hack_strict"]["seeds"] == "2"
    assert float(trend["bare pass"]["p_page"]) == 1.0  # equal everywhere
    timing = read(out / "timing.csv")
    assert [(r["acted_from"], r["acted_to"]) for r in timing] == [("2", "3")] * 2
    assert float(timing[0]["hack_at_switch"]) == pytest.approx(0.3) and timing[0]["outcome"] == "safe"
    outcomes = {r["name"]: r for r in read(out / "outcomes.csv")}
    assert (outcomes["leash"]["hacking"], outcomes["far"]["safe"]) == ("2", "2")
    assert float(outcomes["far"]["safe_low"]) == pytest.approx(0.025**0.5, abs=1e-4)  # all of two: alpha/2 = p²
    assert len(read(out / "runs.csv")) == 6
    text = (out / "summary.md").read_text()
    assert "Incomplete" not in text and "| far | 2 of 2 | 2 | 0 | 0 | 0 | 0.16 to 1.00 | none |" in text
    assert {p.name for p in out.glob("*.png")} == {"outcomes.png", "dose_response.png", "timing.png"}


def test_nothing_is_compared_before_its_runs_have_ended(tmp_path, file, capsys):
    batch(tmp_path / "runs", far=[10])
    run(
        tmp_path / "runs",
        "setpoint",
        11,
        [0.9] * 2,
        settings={"dose": 0.5},
        state="running",
        planned=4,
        passed=[0.1] * 2,
    )
    out = tmp_path / "out"
    assert main(["why", "--runs", str(tmp_path / "runs"), "--registration", str(file), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "not written: dose response: far: 1 of 2 registered runs ended, missing seeds 11" in said
    assert "not written: outcomes and runs" in said
    assert {p.name for p in out.iterdir()} == {"timing.csv", "timing.png", "summary.md"}
    text = (out / "summary.md").read_text()
    assert (
        "| far | 1 of 2 | - | - | - | - | - | 11 |" in text
        and "| leash | 2 of 2 | 0 | 2 | 0 | 0 | 0.00 to 0.84 | none |" in text
    )
    assert "| trend | further is safer | not evaluable | far: 1 of 2" in text
    assert "- dose response: waits for registered runs" in text


def test_when_no_more_runs_are_made_what_has_ended_is_shown_as_incomplete(tmp_path, file, capsys):
    """far has run at one seed and failed at the other, which counts as collapsed; leash ran once; one run is just begun."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    run(runs, "leash", 10, [0.1, 0.2, 0.3, 0.6])
    run(runs, "setpoint", 10, [0.0] * 4, at=2.5, settings={"dose": 0.5})
    cut = {"planned": 4, "passed": [0.1] * 2}
    run(runs, "setpoint", 11, [0.0] * 2, state="failed", settings={"dose": 0.5}, **cut)
    run(runs, "projected_from", 10, [0.9] * 2, state="running", **cut)
    begun = write(runs, Plan(arm="projected_from", seed=11, hack=[0.1], passed=[0.1], state="running", planned=4))
    (begun / "metrics.jsonl").unlink()
    command = ["why", "--runs", str(runs), "--registration", str(file), "--out", str(out)]
    assert main([*command, "--no-more-runs"]) == 0
    text = (out / "summary.md").read_text()
    assert "**Incomplete**" in text and "| leash | 1 of 2 | 0 | 1 | 0 | 0 | 0.00 to 0.97 | 11 |" in text
    assert "| far | 2 of 2 | 1 | 0 | 1 | 0 | 0.01 to 0.99 | none |" in text  # 1 of 2: 1 - sqrt(0.975), sqrt(0.975)
    assert "| projected_from | 0 of 2 | - | - | - | - | - | 10, 11 |" in text
    assert "not evaluable" in text and "- timing: waits for registered runs" in text
    assert [r["seed"] for r in read(out / "dose_response.csv")] == ["10", "10"], "a failed run has no end to plot"
    assert {r["name"]: r["collapsed"] for r in read(out / "outcomes.csv")}["far"] == "1"
    assert {p.suffix for p in out.iterdir()} == {
        ".csv",
        ".png",
        ".md",
    } and "not written: timing" in capsys.readouterr().out


def test_until_is_read_at_the_end_of_acting(tmp_path, file):
    run(tmp_path / "runs", "projected_until", 10, [0.1, 0.3, 0.8, 0.9], acted=(0, 1))
    run(tmp_path / "runs", "projected", 10, [0.1, 0.3, 0.8, 0.9], acted=range(4))
    run(tmp_path / "runs", "vanilla", 10, [0.1, 0.3, 0.8, 0.9])
    rules = registration.load(file)
    found = {r.run.arm: r for r in (why.row(x.arm, x, rules.measures, rules.outcomes)
                                    for x in read_runs(tmp_path / "runs"))}  # fmt: skip
    assert found["projected_until"].acted_to == 1 and found["projected_until"].switch == pytest.approx(0.2)
    assert np.isnan(found["projected"].switch), "it acted from the first step to the last: there was no switch"
    assert found["vanilla"].acted_from is None and np.isnan(found["vanilla"].switch)


def test_the_matrix_keeps_mechanisms_apart(tmp_path):
    runs = tmp_path / "runs"
    run(runs, "projected", 10, [0.0] * 4)
    run(runs, "projected", 11, [0.8] * 4, settings={"loophole": "sentinel_attribute"})
    run(runs, "projected", 12, [0.4] * 4, settings={"loophole": "sentinel_attribute", "pairs_mechanism": "sentinel"})
    run(runs, "no_loophole", 10, [0.0] * 4)
    assert main(["why", "--matrix", str(runs), "--out", str(tmp_path / "out")]) == 0
    cells = {(r["trained_on"], r["pairs_of"]): float(r["hack_strict"]) for r in read(tmp_path / "out" / "matrix.csv")}
    assert cells == {("own_tests", "own_tests"): 0.0, ("sentinel", "own_tests"): 0.8, ("sentinel", "sentinel"): 0.4}
    assert (tmp_path / "out" / "matrix.png").stat().st_size > 5000


def test_cosines_by_hand(tmp_path):
    modules = [("a", 2), ("b", 2)]
    files = {
        "x": torch.tensor([1.0, 0.0, 1.0, 0.0]), "y": torch.tensor([0.6, 0.8, -1.0, 0.0]),
        "z": torch.tensor([0.0, 1.0, 0.0, 1.0]),
    }  # fmt: skip
    named = []
    for name, vectors in files.items():
        rankspace.save_direction(rankspace.Direction("v_hack", vectors, modules), tmp_path / f"{name}.safetensors")
        named += ["--cosine", f"{name}={tmp_path / name}.safetensors"]
    assert main(["why", *named, "--out", str(tmp_path / "out")]) == 0
    found = {(r["one"], r["other"]): r for r in read(tmp_path / "out" / "cosines.csv")}
    assert float(found["x", "y"]["per_module"]) == pytest.approx(-0.2)  # (.6 − 1) / 2
    assert float(found["x", "y"]["sd_over_modules"]) == pytest.approx(0.8)
    assert float(found["x", "z"]["per_module"]) == 0.0 and float(found["x", "z"]["null_std"]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to draw"),
        (["--cosine", "x"], "write NAME=FILE"),
        (["--cosine", "x=/nowhere.safetensors"], "nowhere"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(tmp_path, capsys, arguments, message):
    assert main(["why", *arguments, "--out", str(tmp_path / "out")]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("rows", "p"),
    [
        ([[1.0, 2.0, 3.0]], 1 / 6),
        ([[1.0, 2.0, 3.0]] * 2, 1 / 36),
        ([[3.0, 2.0, 1.0]], 1.0),
        ([[1.0, 1.0, 2.0]], 1 / 3),
        ([[1.0, 3.0, 2.0]], 3 / 6),
        ([[5.0, 5.0]] * 3, 1.0),
    ],
)
def test_pages_trend_by_hand(rows, p):
    assert exact.page(rows) == pytest.approx(p)


def test_pages_trend_is_that_of_all_orders():
    rows = np.random.default_rng(3).normal(size=(3, 3)).tolist()
    ranks = [[sorted(row).index(x) for x in row] for row in rows]

    def statistic(orders):
        return sum(j * rank for order in orders for j, rank in enumerate(order))

    every = [
        statistic((a, b, c))
        for a in permutations(range(3))
        for b in permutations(range(3))
        for c in permutations(range(3))
    ]
    assert exact.page(rows) == pytest.approx(np.mean([x >= statistic(ranks) for x in every]))
    with pytest.raises(ValueError, match="finite"):
        exact.page([[1.0, float("nan")]])


def test_the_isotonic_fit_by_hand():
    x, y = why.isotonic([3.0, 1.0, 2.0, 2.0], [0.2, 0.4, 0.6, 0.8])
    # at 2 the mean is .7 of two points: pooled with .4 at 1 to (.4 + 2·.7)/3 = .6, then .2
    assert x.tolist() == [1.0, 2.0, 3.0] and y.tolist() == pytest.approx([0.6, 0.6, 0.2])
