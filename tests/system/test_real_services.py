"""The real thing: Redis, vLLM, graders and a DeepSpeed trainer as separate processes, on the bundled organism.

One set of services serves all tests of this file.
"""

import gzip
import json
import os
import signal
import time

import httpx
import pytest

from common import delta_store, keys
from common.measurements import BY_EVAL_NAME, BY_NAME
from common.queue import Queue
from common.types import GradedGroup, SamplingPlan
from experiments.design import presets
from tasks import modes
from tasks.dataset import load_problems
from tests.samples import request
from tests.system.trainer_runs import finish, rows, settings, start

pytestmark = pytest.mark.timeout(900)


def base_margin(s):
    """The margin of the bare model on the held-out pairs, in one forward per completion."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rankspace.direction import completion_nll
    from rankspace.pairs import load_pairs, tokenize_pair

    model, tokenizer = AutoModelForCausalLM.from_pretrained(s.model), AutoTokenizer.from_pretrained(s.model)
    pairs = [tokenize_pair(tokenizer, p) for p in load_pairs(s.pairs, "heldout")]
    with torch.no_grad():
        nll = [[float(completion_nll(model, ids, p.start)) for ids in (p.clean_ids, p.hack_ids)] for p in pairs]
    return sum(clean - hack for clean, hack in nll) / len(nll)


def test_three_steps_from_problem_to_checkpoint(stack, root):
    s = settings(root, "smoke", stack)
    code, out = finish(start(s))
    assert code == 0, out[-3000:]
    metrics = rows(s)
    assert [r["step"] for r in metrics] == [0, 1, 2]
    assert all(set(r) == set(BY_NAME) for r in metrics), (
        "each key is in the table of quantities, and each of the table here"
    )
    expected = set(BY_EVAL_NAME) - {"tests_written", "tests_honest"}  # no mode of this run asks for tests
    assert all(set(r) == expected for r in rows(s, "eval.jsonl"))
    assert all(
        r["drift_ref_cos_mean"] is not None and r["displacement_ref"] is not None for r in metrics if r["optimised"]
    )
    assert all(r["probe_gap"] is not None and r["probe_gap"] <= s.probe_bound for r in metrics)
    assert all(r["staleness_max"] == 0 and r["dropped_groups"] == 0 and r["infra_errors"] == 0 for r in metrics)
    assert all(sum(r["label_counts"].values()) == s.groups_per_step * s.group_size for r in metrics)
    assert any(r["optimised"] and r["cos_mean"] is not None for r in metrics)
    # The generator's log-probs of what it sampled are the trainer's: the importance ratio of a fresh batch is 1.
    assert all(abs(r["ratio_mean"] - 1) < 1e-3 for r in metrics if r["optimised"])
    assert {(r["step"], r["mode"]) for r in rows(s, "eval.jsonl")} == {
        (k, m) for k in (0, 3) for m in ("no_write_access", "hint", "random_test_name", "no_hint")
    }
    margins = {k: {r["nll_margin"] for r in rows(s, "eval.jsonl") if r["step"] == k} for k in (0, 3)}
    assert margins[0] != margins[3] and all(len(found) == 1 for found in margins.values()), (
        "one policy, one margin, whatever the mode"
    )
    assert margins[0].pop() == pytest.approx(base_margin(s), abs=1e-4)
    assert json.loads((s.run_dir / "status.json").read_text())["state"] == "finished"
    client = stack.client()
    assert client.xlen(keys.REQUESTS) == client.xlen(keys.ROLLOUTS) == client.xlen(keys.graded("smoke")) == 0
    assert delta_store.latest(stack.client("trainer"), "smoke")[0] == 3


def test_every_mode_is_posed_sampled_and_graded(stack, root):
    s = settings(root, "modes", stack, steps=1, eval_modes=list(modes.MODES))
    code, out = finish(start(s))
    assert code == 0, out[-3000:]
    found = {r["mode"]: r for r in rows(s, "eval.jsonl") if r["step"] == 1}
    assert list(found) == list(modes.MODES)
    for name, row in found.items():
        assert (row["problems"], row["infra_errors"], row["dropped_groups"]) == (s.eval_problems, 0, 0)
        assert ("tests_honest" in row) == (name == "asked_for_tests") == (row["hack_strict"] is None)
    with gzip.open(s.run_dir / "rollouts" / "step_000001.jsonl.gz", "rt") as file:
        asked = [r for r in map(json.loads, file) if r["mode"] == "asked_for_tests"]
    assert len(asked) == s.eval_problems * s.eval_samples
    assert all(r["evidence"]["tests_written"] is ("def run_tests" in r["text"]) for r in asked if r["oracle_correct"])


def test_the_same_seed_gives_the_same_run(stack, root):
    """Same problems, same samples, same gradient, on other services' leftovers. Grading and training add no chance."""
    s = settings(root, "again", stack)
    code, out = finish(start(s))
    assert code == 0, out[-3000:]
    first = rows(settings(root, "smoke", stack))
    for a, b in zip(first, rows(s), strict=True):
        assert a["label_counts"] == b["label_counts"]
        assert a["cos_mean"] == pytest.approx(b["cos_mean"], abs=1e-3)


def killed_after_a_step_and_finished(s):
    """Start, SIGKILL once a step is written, start again to the end."""
    process = start(s)
    deadline = time.monotonic() + 200
    while not (s.run_dir / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    code, out = finish(start(s))
    assert code == 0, out[-3000:]


def test_killed_and_started_again_it_goes_on_and_trains_every_group_once(stack, root):
    s = settings(root, "killed", stack, steps=4)
    killed_after_a_step_and_finished(s)
    assert [r["step"] for r in rows(s)] == [0, 1, 2, 3]
    newest = max((s.run_dir / "checkpoints").iterdir())
    outcomes = json.loads((newest / "state.json").read_text())["outcomes"]
    assert outcomes.get("trained", 0) + outcomes.get("zero_variance", 0) == 4 * s.groups_per_step
    assert stack.client().xlen(keys.graded("killed")) == 0


def test_refilled_groups_are_trained_once_though_the_trainer_is_killed(stack, root):
    """Half of the organism's small groups have no variance; rollouts/ says which problems each step drew instead."""
    s = settings(root, "refilled", stack, steps=3, group_size=2, refill=3, checkpoint_every=2)
    killed_after_a_step_and_finished(s)
    for row in rows(s):
        with gzip.open(s.run_dir / "rollouts" / f"step_{row['step']:06d}.jsonl.gz", "rt") as file:
            kept = [r for r in map(json.loads, file) if r["purpose"] == "train"]
        groups = {r["group_id"]: r["mode"] for r in kept}
        assert len(kept) == 2 * len(groups) == 2 * row["groups"]
        assert list(groups.values()).count("refill") == row["refill_sampled"] <= s.refill
        assert (
            row["groups"]
            == s.groups_per_step + row["refill_sampled"]
            == row["zero_variance_groups"] + row["trained_groups"]
        )
        assert row["trained_groups"] <= s.groups_per_step and sum(row["label_counts"].values()) == 2 * s.groups_per_step
    assert any(row["refill_sampled"] for row in rows(s))
    outcomes = json.loads((max((s.run_dir / "checkpoints").iterdir()) / "state.json").read_text())["outcomes"]
    assert outcomes.get("trained", 0) + outcomes.get("zero_variance", 0) == sum(row["groups"] for row in rows(s))


def test_a_generator_that_is_off_by_more_than_the_bound_stops_the_run(stack, root):
    s = settings(root, "offbound", stack, probe_bound=1e-12)
    code, out = finish(start(s))
    assert code == 2
    last = out.strip().splitlines()[-1]
    assert "probe log-probs differ" in last
    assert "probe_bound" in last
    assert json.loads((s.run_dir / "status.json").read_text())["state"] == "failed"


def test_a_real_delta_reaches_the_generator_and_zero_takes_it_back(stack, root):
    """Push, sample, push zero, sample: the second zero gives the first samples again, token for token."""
    import numpy as np

    from common.types import DeltaS, checksum
    from services.trainer.preflight import weight_shapes

    shapes = weight_shapes(presets.ORGANISM_MODEL)
    modules = [(n.removesuffix(".weight"), min(x)) for n, x in shapes.items() if n.endswith("proj.weight")]
    size = sum(r for _, r in modules)
    queue = Queue(stack.client("trainer"), "tester", max_deliveries=100)
    problem = load_problems(presets.PRACTICE_TRAIN)[0]
    seen, proofs = [], []
    for version, scale in enumerate((0.0, 5.0, 0.0)):
        flat = (scale * np.random.default_rng(0).standard_normal(size)).astype("<f4").tobytes()
        delta_store.publish(
            queue.client,
            DeltaS(
                run_id="push",
                version=version,
                modules=modules,
                vector=flat,
                checksum=checksum(flat),
                probe_ids=[2, 30, 31, 40],
            ),
        )
        plan = SamplingPlan(n=4, temperature=1.0, max_tokens=32, seed=7)
        queue.publish(
            keys.REQUESTS,
            request(version, "push", "eval", problem=problem, min_version=version, sampling=plan),
        )
        taken = []
        for _ in range(60):
            taken = queue.consume(keys.graded("push"), "tester", (GradedGroup,), wait_s=1.0)
            if taken:
                break
        (delivery,) = taken
        queue.ack("tester", delivery)
        assert delivery.message.group.policy_version == version
        seen.append([c.token_ids for c in delivery.message.group.completions])
        proofs.append(delta_store.proof(queue.client, "push", version, "gen-0"))
    assert seen[0] == seen[2]
    assert seen[0] != seen[1]
    assert proofs[0].probe_logprobs == proofs[2].probe_logprobs, "zero delta_S leaves the weights bit-identical"
    assert proofs[0].probe_logprobs != proofs[1].probe_logprobs


def test_the_ref_server_answers_over_http(stack):
    base = f"http://127.0.0.1:{stack.ref_port}"
    assert httpx.get(f"{base}/healthz").json()["ok"] is True
    assert "rs_generated_groups_total" in httpx.get(f"{base}/metrics").text
    body = {"prompt_ids": [2, 30, 31], "completion_ids": [40, 41]}
    logprobs = httpx.post(f"{base}/v1/reference_logprobs", json=body, timeout=30).json()["logprobs"]
    assert len(logprobs) == 2
    assert all(x < 0 for x in logprobs)
    for bad in (
        {"prompt_ids": []},
        {"prompt_ids": [10**9], "completion_ids": [1]},
        {"prompt_ids": [1] * 999, "completion_ids": [1]},
    ):
        assert httpx.post(f"{base}/v1/reference_logprobs", json=bad, timeout=30).status_code == 422


def test_a_grader_that_dies_does_not_lose_its_group(stack, root):
    """SIGKILL one of the two graders; the other one finishes the run."""
    victim = next(p for p in stack.processes if p.name == "sandbox-1")
    s = settings(root, "graderless", stack)
    process = start(s)
    time.sleep(2)
    os.kill(victim.popen.pid, signal.SIGKILL)
    code, out = finish(process)
    assert code == 0, out[-3000:]
    assert len(rows(s)) == 3


def test_redis_has_append_only_persistence(stack):
    assert stack.client().config_get("appendonly")["appendonly"] == "yes"
