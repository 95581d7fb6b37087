"""The numbers in README, docs/results.md and LOG.md are those of docs/results/organism, computed again."""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from bench.gpu import loop

ROOT = Path(__file__).resolve().parents[2]
ORGANISM = ROOT / "docs/results/organism"


LONGER = ROOT / "docs/results/organism-150"
SMOLLM = ROOT / "docs/results/smollm2"
FURTHER = ROOT / "docs/results/organism-longer"


def rows(name, folder=ORGANISM):
    with open(folder / name) as file:
        return list(csv.DictReader(file))


def recomputed(folder=ORGANISM):
    """arm -> [(hack %, pass %) a finished seed], from the steps themselves."""
    steps, found = rows("steps.csv", folder), defaultdict(list)
    for run in rows("runs.csv", folder):
        if run["state"] == "finished":
            mine = [s for s in steps if (s["arm"], s["seed"]) == (run["arm"], run["seed"])][-int(run["window"]) :]
            pair = [100 * statistics.mean(float(s[name]) for s in mine) for name in ("hack_strict", "pass_oracle")]
            assert pair == pytest.approx([float(run["hack"]), float(run["pass"])], abs=0.051), run["run_id"]
            found[run["arm"]].append(pair)
    return found


def heldout(arm):
    """Last evaluation with the hint, mean over finished seeds, %."""
    seeds = {r["seed"] for r in rows("runs.csv") if r["arm"] == arm and r["state"] == "finished"}
    last = [
        r
        for r in rows("evaluations.csv")
        if (r["arm"], r["mode"], r["step"]) == (arm, "hint", "80") and r["seed"] in seeds
    ]
    return 100 * statistics.mean(float(r["hack_strict"]) for r in last)


def heldout_by_seed(folder, arm, step):
    """The evaluation at that step with the hint, in order of seed, %, as the tables print it."""
    last = [r for r in rows("evaluations.csv", folder) if (r["arm"], r["mode"], r["step"]) == (arm, "hint", step)]
    return ", ".join(f"{100 * float(r['hack_strict']):.1f}" for r in sorted(last, key=lambda r: int(r["seed"])))


def printed(values):
    sem = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.1f} ± {sem:.1f}"


ARMS = recomputed()


def table(page, heading):
    """Cells of the first table below a heading, without emphasis."""
    block = (ROOT / page).read_text().split(heading, 1)[1].split("\n|", 1)[1].split("\n\n", 1)[0]
    return [[c.strip(" *`%") for c in line.strip("|").split("|")] for line in ("|" + block).splitlines()[2:]]


def test_readme():
    cells = table("README.md", "**Model organism**: five seeds")
    for arm, hack, solved, _ in cells:
        name, seeds = re.fullmatch(r"(\w+)[`*]*(?:, (\d) seeds)?", arm).groups()
        values = ARMS[name]
        assert len(values) == int(seeds or 5), name
        assert (hack, solved) == tuple(printed(column) for column in zip(*values, strict=True)), name
    assert len(cells) == 8


@pytest.mark.parametrize(("page", "heading", "hack", "held"), [
    ("docs/results.md", "## The experiment on the organism", 2, 4),
    ("LOG.md", "The experiment on the organism", 2, 5),
])  # fmt: skip
def test_results_and_log(page, heading, hack, held):
    cells = table(page, heading)
    assert len(cells) == 10
    for row in cells:
        values = ARMS[row[0]]
        assert int(row[1]) == len(values), row[0]
        want = [printed(column) for column in zip(*values, strict=True)]
        for shown, full in zip(row[hack : hack + 2], want, strict=True):
            assert shown.replace("*", "") in (full, full.split(" ")[0]), (
                f"{page}: {row[0]} says {shown}, the files {full}"
            )
        assert row[held] == f"{heldout(row[0]):.1f}", f"{page}: {row[0]}, held out"


@pytest.mark.parametrize(("heading", "folder"), [("## At 150 steps", LONGER), ("## SmolLM2-135M", SMOLLM)])
def test_runs_of_150_steps(heading, folder):
    """Each row of the table: every finished seed's final rates, in order of seed."""
    found = recomputed(folder)
    cells = table("docs/results.md", heading)
    assert {c[0] for c in cells} == set(found)
    for arm, seeds, hack, passed, held in cells:
        finals = found[arm]
        assert int(seeds) == len(finals)
        assert hack == ", ".join(f"{h:.1f}" for h, _ in finals) and passed == ", ".join(
            f"{p:.1f}" for _, p in finals
        ), arm
        assert held == heldout_by_seed(folder, arm, "150"), arm


@pytest.mark.parametrize(
    "folder", sorted(path for path in FURTHER.iterdir() if path.is_dir()), ids=lambda path: path.name
)
def test_longer_and_fresh_runs(folder):
    """Each row of that table is one folder: final rates, held-out rate and onset of every seed, in order of seed."""
    runs = sorted(rows("runs.csv", folder), key=lambda run: int(run["seed"]))
    (arm,), steps = {run["arm"] for run in runs}, {run["steps"].split("/")[1] for run in runs}
    cells = [c for c in table("docs/results.md", "## Longer, and with v_hack kept fresh") if c[0].split(",")[0] == arm]
    (row,) = [c for c in cells if {c[2]} == steps]
    finals = recomputed(folder)[arm]
    hacks, solved = (", ".join(f"{rate:.1f}" for rate in rates) for rates in zip(*finals, strict=True))
    onsets = ", ".join(run["onset"] for run in runs)
    assert int(row[1]) == len(finals) and row[3:] == [hacks, solved, heldout_by_seed(folder, arm, row[2]), onsets]


def test_drift_of_the_organism():
    """Drift after 10, 50 and 150 steps, hack rates beside it, of each arm's one run."""
    folder = ROOT / "docs/results/organism-drift"
    runs = {r["arm"]: r for r in rows("runs.csv", folder)}
    cells = table("docs/results.md", "## Where delta_S goes")
    assert {c[0] for c in cells} == set(runs)
    for arm, *shown in cells:
        mine = [r for r in rows("steps.csv", folder) if r["arm"] == arm]
        assert [float(x) for x in shown[:3]] == [round(float(mine[i]["drift_cos_mean"]), 3) for i in (9, 49, 149)], arm
        hacks = [100 * statistics.mean(float(r["hack_strict"]) for r in mine[i:j]) for i, j in ((5, 10), (45, 50))]
        assert shown[3:5] == [f"{hack:.1f}" for hack in hacks], arm
        assert shown[5:] == [runs[arm]["hack"], runs[arm]["pass"], runs[arm]["onset"]]


def test_readme_on_the_pretrained_model():
    """The table: every seed's rates, those of seeds that were cut off with their step; the sentence on the first screen."""
    text = " ".join((ROOT / "README.md").read_text().split())
    runs = defaultdict(list)
    for run in rows("runs.csv", SMOLLM):
        runs[run["arm"]].append(run)
    cells = table("README.md", "**Pretrained model**: SmolLM2")
    assert {c[0].split("`")[0] for c in cells} == set(runs) - {"projected_no_rescale"}
    hacks = {}
    for name, shown_hacks, shown_solved in cells:
        arm, mine = name.split("`")[0], runs[name.split("`")[0]]
        hacks[arm] = [str(round(float(run["hack"]))) for run in mine]
        assert shown_hacks == ", ".join(hacks[arm]), arm
        assert shown_solved == ", ".join(str(round(float(run["pass"]))) for run in mine), arm
        cut_off = [run["steps"].split("/")[0] for run in mine if run["state"] != "finished"]
        assert re.findall(r"\d+", name.partition("cut off")[2]) == cut_off, arm
    says = [("plain RL ends at {}, {} and {}% hacks", "vanilla"), ("the projection at {}, {} and {}%", "projected")]
    for sentence, arm in [*says, ("a random direction at {}, {} and {}%", "random_direction")]:
        assert sentence.format(*hacks[arm]) in text, arm


def test_drift_tells_the_runs_that_hack():
    """Text and files of docs/results/smollm2: the gap in the drift is the gap in the hack rate, in every run."""
    found = [(float(r["drift"]), float(r["hack_strict"]), r["arm"]) for r in rows("drift.csv", SMOLLM)]
    honest, others = [d for d, hack, _ in found if hack == 0], [d for d, hack, _ in found if hack > 0]
    assert (len(found), len({arm for *_, arm in found})) == (26, 9) and min(h for _, h, _ in found if h > 0) >= 0.46
    assert max(honest) <= -0.0745 and min(others) >= -0.03
    untouched = [(d, hack) for d, hack, arm in found if arm in ("rebound", "rebound_z", "shuffled_pairs")]
    assert (sum(h == 0 for _, h in untouched), len(untouched)) == (4, 9)


def test_table_of_the_pretrained_model():
    """A row a run: final rates, held-out rates with the hint and without, drift; those that were cut off with their step."""
    runs, places = ({(r["arm"], r["seed"]): r for r in rows(name, SMOLLM)} for name in ("runs.csv", "drift.csv"))
    last = {(r["arm"], r["seed"], r["mode"]): r for r in rows("evaluations.csv", SMOLLM) if r["step"] == "150"}
    arm, seen = "", set()
    for name, which, hack, passed, *held, drift in table("docs/results/smollm2/README.md", "## The arms"):
        arm, (seed, *cut) = name.removeprefix("cut off:* ") or arm, which.split(", ")
        if seed == "":  # before RL
            continue
        run = runs[arm, seed]
        assert (hack, passed) == (run["hack"], run["pass"]) and float(drift) == round(
            float(places[arm, seed]["drift"]), 2
        ), run
        hint, bare = ((last[arm, seed, mode] if not cut else None) for mode in ("hint", "no_hint"))
        want = [(hint, "hack_strict"), (hint, "pass_oracle"), (bare, "pass_oracle")]
        assert held == [f"{100 * float(row[rate]):.1f}" if row else "" for row, rate in want], run
        assert cut == ([] if run["state"] == "finished" else [f"to step {run['steps'].split('/')[0]}"])
        seen.add((arm, seed))
    assert seen == set(runs)


def test_speed():
    bench = (ROOT / "docs/results/gpu/README.md").read_text()
    ratio, speed = re.search(r"\| merged compiled \| ([\d.]+) .*?\| ([\d,]+) \|", bench).groups()
    push = re.search(r"\| delta_S, .*?\| [\d.]+ \| (\d+) \|", bench).group(1)
    thousands = f"{int(speed.replace(',', '')) / 1000:.1f}k"
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"training takes {thousands} tokens per second at 1.7B. That is {ratio} times LoRA-32" in readme
    assert f"new policy version comes {push} ms after the optimizer's step" in readme


def test_the_loop_on_gpus():
    """The table in docs/results/gpu, README and results.md against every step in bench.json."""
    everything = json.loads((ROOT / "docs/results/gpu/bench.json").read_text())
    names = ("loop 1.7b compiled", "loop 4b compiled bases on host", "loop 1.7b compiled two GPUs")
    minutes, cells = [], table("docs/results/gpu/README.md", "## The whole loop")
    for name, (_, *seconds, whole, idle, memory) in zip(names, cells, strict=True):
        found = everything[name]
        phases = loop.medians(found["all_steps"])
        assert [float(s) for s in seconds] == [round(phases[phase], 1) for phase in loop.PHASES]
        minutes.append(round(200 * phases["total"] / 60))
        assert whole == f"{minutes[-1]} min"
        assert idle.replace("%", "") == ", ".join(f"{100 * gpu['idle_share']:.0f}" for gpu in found["gpus"].values())
        assert memory == ", ".join(f"{gpu['memory_gib']:.0f}" for gpu in found["gpus"].values())
    one, large, two = minutes
    readme, results = (" ".join((ROOT / page).read_text().split()) for page in ("README.md", "docs/results.md"))
    assert f"200 steps of 128 x 1,024 tokens take {one} minutes at 1.7B and {large} minutes at 4B" in readme
    assert (
        f"{one} minutes at 1.7B and {large} at 4B on one H100**, {two} at 1.7B with the generator on a second card"
        in results
    )
