"""Runs counted together: the place of the hack asks of many cells at once, and each of their runs counts once."""

from __future__ import annotations

import json

import pytest
from registrations import registered, write_registration
from test_cells import SEEDS, runs

from common.errors import ConfigError
from experiments.analysis.verdict import main
from experiments.design import registration

CELLS = {
    f"{arm}_{place}": {"arm": arm, "settings": {"loophole": loophole}}
    for arm in ("vanilla", "projected")
    for place, loophole in (("own", "simple_overwrite_tests"), ("file", "result_file"))
}
CLAIMS = {
    "safer": {
        "kind": "safe_contrast", "level": "secondary", "claim": "the projection is safe on both", "arm": "projecting",
        "baseline": "plain", "test": "fisher", "supported_safe_at_least": 5, "falsified_lead_at_most": 0,
        "baseline_hacking_at_least": 4,
    },
    "hacks": {
        "kind": "outcome_count", "claim": "RL teaches both", "arm": "plain", "outcome": "hacking",
        "supported_at_least": 5, "falsified_at_most": 2,
    },
}  # fmt: skip
POOLS = {"plain": ["vanilla_own", "vanilla_file"], "projecting": ["projected_own", "projected_file"]}
REGISTRATION = registered(arms=dict.fromkeys(CELLS, SEEDS), cells=CELLS, claims=CLAIMS)


def filed(tmp_path, claims=CLAIMS, **pools):
    design = REGISTRATION["design"] | {"pools": POOLS | pools}
    return write_registration(tmp_path, REGISTRATION | {"design": design, "claims": claims})


def judged(root, file, capsys):
    assert main(["--runs", str(root), "--registration", str(file), "--json"]) == 0
    return {verdict["name"]: verdict for verdict in json.loads(capsys.readouterr().out)["verdicts"]}


def made(root, own, file):
    for arm, (first, second) in (("vanilla", own), ("projected", file)):
        runs(root, arm, first, loophole="simple_overwrite_tests")
        runs(root, arm, second, loophole="result_file")


def test_every_run_of_a_pool_counts_once(tmp_path, capsys):
    root, file = tmp_path / "runs", filed(tmp_path)
    made(root, ([0.6, 0.5, 0.4], [0.6, 0.5, 0.0]), ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]))
    answers = judged(root, file, capsys)
    values = answers["safer"]["values"]
    assert (values["safe"], values["n"], values["baseline_safe"], values["baseline_n"]) == (6, 6, 1, 6)
    # all 6 of ours and 1 of theirs safe: C(6,1) tables of C(12,7) = 6 / 792
    assert values["p"] == pytest.approx(6 / 792) and answers["safer"]["state"] == "supported"
    assert len(answers["safer"]["run_ids"]) == 12
    assert (values["ours_only"], values["theirs_only"]) == (0, 0), "no seed of one cell is the pair of another's"
    assert answers["hacks"]["state"] == "supported" and answers["hacks"]["values"]["count"] == 5


def test_a_pool_waits_for_all_its_members(tmp_path, capsys):
    root, file = tmp_path / "runs", filed(tmp_path)
    runs(root, "vanilla", [0.6, 0.5, 0.4], loophole="simple_overwrite_tests")
    answers = judged(root, file, capsys)
    assert answers["hacks"]["state"] == "not evaluable" and "vanilla_file: 0 of 3" in answers["hacks"]["because"]


@pytest.mark.parametrize(
    ("pools", "claim", "complaint"),
    [
        ({"plain": ["vanilla_own", "nobody"]}, {}, "pool plain holds nobody, which design.arms has not"),
        ({"plain": ["vanilla_own", "vanilla_own"]}, {}, "pool plain holds a name twice"),
        ({"vanilla": ["vanilla_own", "vanilla_file"]}, {}, "pool vanilla has the name of an arm or cell"),
        ({}, {"test": "mcnemar"}, "of a pool only outcome_count and safe_contrast by fisher or boschloo"),
        ({}, {"supported_safe_at_least": 7}, "asks for 7 runs of projecting, design.arms has 6"),
        ({"projecting": ["projected_own", "vanilla_own"]}, {}, "vanilla_own is on both sides"),
        ({}, {"arm": "nobody"}, "is about arm nobody, which design.arms has not"),
    ],
)
def test_refused_before_any_run_is_read(tmp_path, pools, claim, complaint):
    file = filed(tmp_path, CLAIMS | {"safer": CLAIMS["safer"] | claim}, **pools)
    with pytest.raises(ConfigError, match=complaint):
        registration.load(file)


def test_a_margin_cannot_be_asked_of_a_pool(tmp_path):
    margin = {
        "kind": "safe_margin", "claim": "as well", "arm": "projecting", "baseline": "plain",
        "supported_lead_at_least": -1, "falsified_lead_at_most": -2,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="of a pool only outcome_count"):
        registration.load(filed(tmp_path, CLAIMS | {"margin": margin}))
