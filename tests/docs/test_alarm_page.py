"""The numbers of docs/alarm.md that come from recorded runs, computed again."""

import csv
import itertools
import re
import statistics
from pathlib import Path

import pytest

from experiments.analysis.alarm import onset_of
from rankspace.hack_watch import calibrate, replay

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/alarm.md").read_text()
KEYS = ("update_cos_mean", "hack_loose", "hack_strict", "kl", "entropy", "length_mean", "reward_mean")
SETS = {
    "organism": ([("rebound_z", s) for s in range(3)], [(arm, s) for arm in ("vanilla", "rebound") for s in range(5)]),
    "smollm2": (
        [("rebound", 0), ("rebound_z", 0), ("rebound_z", 1)],
        [("vanilla", 0), ("vanilla", 1), ("vanilla", 2), ("rebound", 1), ("rebound", 2), ("rebound_z", 2)],
    ),
}


def recorded(name):
    """{(arm, seed): rows}."""
    runs: dict = {}
    with open(ROOT / f"docs/results/{name}/steps.csv") as file:
        for line in csv.DictReader(file):
            row = {"step": int(line["step"])} | {key: float(line[key]) for key in KEYS if line[key]}
            runs.setdefault((line["arm"], int(line["seed"])), []).append(row)
    return runs


def caught_and_lead(name, signal):
    """('caught/runs', median lead) where the clean runs set scale and bound at once: repeated, so that both have all."""
    runs, (clean, hacking) = recorded(name), SETS[name]
    assert all(onset_of(runs[run], 5, 10) is None for run in clean)
    known = calibrate([runs[run] for run in clean] * 5, [signal])
    leads = []
    for run in hacking:
        onset, alarm = onset_of(runs[run], 5, 10), replay(runs[run], known, 0.1).alarm
        leads.append(onset - alarm.step if alarm is not None and alarm.step <= onset else -1)
    return f"{sum(x >= 0 for x in leads)}/{len(leads)}", statistics.median(max(0, x) for x in leads)


def test_development_table():
    table = re.findall(r"^\| `(\w+)` \| (\d+/\d+) \| ([\d.]+) \| (\d+/\d+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert len(table) == 7
    for signal, *printed in table:
        organism, smollm = (caught_and_lead(name, signal) for name in SETS)
        assert printed == [organism[0], f"{organism[1]:g}", smollm[0], f"{smollm[1]:g}"], signal


def lag_one(values):
    mean = statistics.mean(values)
    centred = [x - mean for x in values]
    products = [a * b for a, b in itertools.pairwise(centred)]
    return statistics.mean(products) / statistics.mean(x * x for x in centred)


def test_autocorrelation_of_clean_runs():
    low, high = re.search(r"lag-one autocorrelation of `update_cos_mean` is (0\.\d+) to (0\.\d+)", PAGE).groups()
    found = [lag_one([row["update_cos_mean"] for row in recorded("organism")[("rebound_z", s)]]) for s in range(3)]
    assert [f"{min(found):.2f}", f"{max(found):.2f}"] == [low, high]


@pytest.mark.parametrize(("seed", "percent"), [(0, "45"), (1, "44")])
def test_blind_spot_numbers(seed, percent):
    rows = recorded("organism-150")
    two_sided, vanilla = rows[("projected_two_sided", seed)], rows[("vanilla", seed)]
    assert (
        f"{100 * statistics.mean(row['hack_strict'] for row in two_sided[-25:]):.0f}" == percent
        and f"{percent} %" in PAGE
    )
    early = [statistics.mean(row["update_cos_mean"] for row in run[10:40]) for run in (two_sided, vanilla)]
    assert abs(early[0]) < 0.01 and 0.2 < early[1] < 0.3
