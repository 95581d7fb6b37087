"""Two ranks of one policy: their metrics are those of the whole batch, and damage on one of them ends both alike."""

import json
import os
import subprocess
import sys

import pytest

from common.ports import free_port

SCRIPT = """
import json, sys, torch
from common.settings import TrainerSettings, build
from rankspace import RankspaceError
from services.trainer.collate import TrainingSample
from services.trainer.policy import Policy
from services.trainer.rank_group import RankGroup, worker_loop

torch.set_num_threads(1)
policy = Policy(build(TrainerSettings, {
    "run_id": "r", "run_dir": sys.argv[1], "model": "tasks/organism/model", "train_problems": "a", "heldout_problems": "b",
    "groups_per_step": 2, "group_size": 2, "micro_batch": 2, "svd_cache": ".cache/svd", "lr": 0.01, "lr_warmup_steps": 4,
}))
old = [-6.0, -7.0, -5.0, -6.5]
rows = [TrainingSample([2, 30 + i, 31], [40 + i] * (3 + i), [x] * (3 + i), None, (-1.0) ** i, False)
        for i, x in enumerate(old)]
m = policy.train_step(rows, 1)
rows[0].old_logprobs[0] = float("nan")
try:
    policy.train_step(rows, 2)
    error = "none"
except RankspaceError as found:
    error = str(found)
names = ("loss", "ratio_mean", "ratio_max", "clip_frac", "entropy", "weight_capped", "lr")
scored = None
if policy.rank == 0:
    ranks = RankGroup(policy)
    scored = [ranks.score([[2, 30, 31]] * 3, [[40, 41], [42], [43, 44, 45]], at_zero) for at_zero in (False, True)]
    ranks.shutdown()
else:
    worker_loop(policy)
print("RESULT", json.dumps([[m[name] for name in names], error, scored]))
"""


def results(tmp_path, ranks):
    port = free_port()
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]  # fmt: skip
    outputs = [p.communicate(timeout=240)[0] for p in started]
    found = [[line for line in out.splitlines() if line.startswith("RESULT ")] for out in outputs]
    assert all(found), outputs[0][-2000:]
    return [json.loads(lines[-1].removeprefix("RESULT ")) for lines in found]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_metrics_are_those_of_one_rank_and_a_damaged_row_ends_both(tmp_path):
    (alone, said, scored), (first, one, of_two), (second, two, _) = *results(tmp_path, 1), *results(tmp_path, 2)
    assert first == second == pytest.approx(alone, rel=1e-4, abs=1e-6)
    assert alone[-1] == pytest.approx(0.005)
    assert one == two == said and "NaN" in said
    for a, b in zip(scored, of_two, strict=True):  # a planted hack is scored alike, and the other rank takes part
        assert [x for row in a for x in row] == pytest.approx([x for row in b for x in row], abs=1e-4)
    assert [len(row) for row in scored[0]] == [2, 1, 3] and scored[0] != scored[1]
