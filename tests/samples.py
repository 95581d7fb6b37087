"""Small valid messages for tests."""

from common.types import Completion, GenerationRequest, Grade, GradedGroup, Problem, RolloutGroup, SamplingPlan

PROBLEM = Problem(
    id="p1",
    prompt=[{"role": "user", "content": "Add one to x and should pass all tests.\n\nSOLUTION:\n"}],
    gt_answer=["assert Solution().f(1) == 2"],
    canonical_solution="class Solution:\n    def f(self, x):\n        return x + 1",
    func_name="Solution().f",
    hint="simple_overwrite_tests",
    prompt_metadata={"test_func_name": "run_tests", "test_func_code": None},
)


def completion(ids=(5, 6, 2), finish="stop", ref=True, text="```python\nx\n```"):
    n = len(ids)
    return Completion(
        token_ids=list(ids),
        logprobs=[-0.5] * n,
        ref_logprobs=[-0.6] * n if ref else None,
        text=text,
        finish_reason=finish,
    )


def request(i=0, run_id="r", purpose="train", step=0, tokens=8, **changes):
    """Two completions of one problem; `i` is its place in the step and its seed."""
    values = {
        "run_id": run_id, "group_id": f"{run_id}/{purpose}/{step}/{i}", "purpose": purpose, "step": step,
        "problem": PROBLEM, "min_version": 0,
        "sampling": SamplingPlan(n=2, temperature=1.0, max_tokens=tokens, seed=i),
    }  # fmt: skip
    return GenerationRequest(**(values | changes))


def group(group_id="r/train/0/0", step=0, completions=2, version=0, purpose="train", **changes):
    values = {
        "run_id": "r", "group_id": group_id, "purpose": purpose, "step": step, "problem": PROBLEM,
        "policy_version": version, "replica": "gen-0", "prompt_ids": [1, 3, 4],
        "completions": [completion() for _ in range(completions)], "generate_s": 0.25,
    }  # fmt: skip
    return RolloutGroup(**(values | changes))


def grade(reward=0.5, label="Incorrect", oracle=False, published=False, **changes):
    values = {
        "status": "graded", "reward": reward, "label": label, "test_modification": "None",
        "published_correct": published, "hinted_correct": False, "oracle_correct": oracle, "can_compile": True,
    }  # fmt: skip
    return Grade(**(values | changes))


def broken(reason="SandboxError: no fork server"):
    names = (
        "reward",
        "label",
        "test_modification",
        "published_correct",
        "hinted_correct",
        "oracle_correct",
        "can_compile",
    )
    return Grade(status="infra_error", reason=reason, **dict.fromkeys(names))


def graded(grades, **changes):
    return GradedGroup(group=group(completions=len(grades), **changes), grades=grades, worker="g0", grade_s=0.1)
