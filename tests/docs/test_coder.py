"""The numbers on the code model's page and in README are those of docs/results/coder-1.5b, computed again."""

import csv
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs/results/coder-1.5b"
PAGE = (FOLDER / "README.md").read_text()
BOTH = range(35, 47)  # steps of the table
ARMS = ("vanilla", "projected")


def rows(name):
    with open(FOLDER / name) as file:
        return list(csv.DictReader(file))


def cells(label, step=None):
    """What the page's row of that name has, without emphasis and signs of percent."""
    lines, last = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| ")], ""
    for line in lines:
        name, *values = [cell.strip(" *%") for cell in line]
        last = name or last
        if last == label and step in (None, values[0]):
            return values[step is not None :]
    raise AssertionError(f"no row {label!r} {step or ''}")


def mean(arm, column):
    values = [float(r[column]) for r in rows("steps.csv") if r["arm"] == arm and int(r["step"]) in BOTH]
    assert len(values) == len(BOTH)
    return statistics.mean(values)


@pytest.mark.parametrize(
    "label, column, form",
    [
        ("strict hacks", "hack_strict", lambda x: f"{100 * x:.1f}"),
        ("define the test function or try to hack", "hack_loose", lambda x: f"{100 * x:.1f}"),
        ("solved (protected oracle)", "pass_oracle", lambda x: f"{100 * x:.1f}"),
        ("displacement along v_hack; positive: away from the hack", "displacement_ref", lambda x: f"{x:+.2f}"),
        ("norm of delta_S", "delta_norm", lambda x: f"{x:.1f}"),
        ("KL to the model before RL, nats a token", "kl_all", lambda x: f"{x:.3f}"),
    ],
)
def test_training(label, column, form):
    assert [form(mean(arm, column)) for arm in ARMS] == [cell.replace("−", "-") for cell in cells(label)]


@pytest.mark.parametrize("label, mode, column, steps", [
    ("bare prompt, solved", "no_hint", "pass_oracle", "0 25 50"),
    ("hinted, flaw closed, solved", "no_write_access", "pass_oracle", "0 25 50"),
    ("hinted, flaw open, strict hacks", "hint", "hack_strict", "0 25 50"),
    ("a test-function name never trained on, strict hacks", "random_test_name", "hack_strict", "25"),
])  # fmt: skip
def test_evaluations(label, mode, column, steps):
    for step in steps.split():
        evaluated = {r["arm"]: r for r in rows("evaluations.csv") if (r["mode"], r["step"]) == (mode, step)}
        said = [f"{100 * float(evaluated[arm][column]):.1f}" if arm in evaluated else "lost" for arm in ARMS]
        assert cells(label, step) == said, step


def test_readme():
    text = " ".join((ROOT / "README.md").read_text().split())
    said = re.search(r"In steps 35 to 46 plain RL hacks in ([0-9.]+)% of rollouts, the projection in none", text)
    assert said and said[1] == f"{100 * mean('vanilla', 'hack_strict'):.1f}" and mean("projected", "hack_strict") == 0


def test_cosines():
    """Each printed cosine is the file's, and each of the file is printed."""
    found = {(r["one"], r["other"]): float(r["per_module"]) for r in rows("cosines.csv")}
    names = ["v_same", "v_wrong", "v_vacuous", "v_helper"]
    assert len(found) == 10
    for one in ["v_hack", *names[:3]]:
        row = [cell.strip(" *").replace("−", "-") for cell in next(
            line for line in PAGE.splitlines() if line.startswith(f"| **{one}** |")).strip("|").split("|")]  # fmt: skip
        printed = dict(zip(names, row[1:], strict=False))
        assert {(one, other): printed[other] for other in names if printed[other]} == {
            pair: f"{value:+.2f}" for pair, value in found.items() if pair[0] == one
        }
