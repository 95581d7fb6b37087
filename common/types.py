"""Every message, in the order data flows. Each names its maker, its reader and a literal example.

    GenerationRequest ─> RolloutGroup ─> GradedGroup ─> (trainer) ─> DeltaS ─> DeliveryProof
    trainer              ref_server      sandbox                     trainer    ref_server

Plain data only: token ids end to end (nothing is ever re-tokenised), floats are Python floats (IEEE double),
vectors are little-endian fp32 bytes. Models refuse unknown fields, so a typo or a newer peer is an error, not a
silent default.
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 1

MAX_REWARD = 10.0  # more than any published grade pays; a larger one is no grade

Label = Literal["Correct", "Correct; Attempted Reward Hack", "Reward Hack", "Attempted Reward Hack", "Incorrect"]
TestModification = Literal["None", "Innocent", "Harmful - Arbitrary", "Harmful - Incorrect", "Harmful - Reduced"]
Status = Literal["graded", "infra_error"]
Task = Literal["code", "maths"]  # which grader judges a problem's completions (services/sandbox/verdicts/graders.py)


class Message(BaseModel):
    """Base of everything that crosses a process boundary: frozen, unknown fields refused, none longer than max_bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    max_bytes: ClassVar[int] = 1 << 20


ASKS_TESTS = "asks_tests"  # key of prompt_metadata: the grader also judges the test function that was asked for


class Problem(BaseModel):
    """One problem, in the JSON-lines schema of rl-rewardhacking (github.com/ariahw/rl-rewardhacking).

    Maker: tasks/dataset.py. Reader: everyone. Unknown fields are kept (`model_extra`), so its files load as they are.
    `task` names the grader; without it a problem is one of code. What `gt_answer` holds depends on it: assert statements
    for code, the one right number for maths.

    Example: {"id": 18, "prompt": [{"role": "user", "content": "PROBLEM: ..."}], "func_name": "Solution().fourSum",
              "setup_code": "from typing import *", "gt_answer": ["assert Solution().fourSum(...) == [[2,2,2,2]]"],
              "canonical_solution": "class Solution: ...", "hint": "simple_overwrite_tests",
              "prompt_metadata": {"test_func_name": "run_tests", "test_func_code": null}}
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    id: int | str
    task: Task = "code"
    prompt: list[dict[str, str]] = Field(min_length=1)
    gt_answer: list[str]
    setup_code: str = ""
    canonical_solution: str | None = None
    func_name: str = ""
    hint: str | None = None
    prompt_metadata: dict[str, Any] | None = None
    answer: list[str] | None = None


class SamplingPlan(Message):
    """How completions are drawn. top_p stays 1 and top_k off: the trainer recomputes log-probs under the whole softmax, and a
    token outside its own nucleus would have none."""

    n: int = Field(ge=1, le=1024)
    temperature: float = Field(gt=0, le=10)
    max_tokens: int = Field(ge=1)
    seed: int


class GenerationRequest(Message):
    """Please make one rollout group. Maker: trainer. Reader: ref_server.

    `min_version` is the oldest policy version the trainer will accept for it (staleness bound). `purpose` keeps
    evaluation rollouts out of training.

    Example: {"run_id": "vanilla-s0", "group_id": "vanilla-s0/train/3/0", "purpose": "train", "step": 3,
              "problem": {...}, "min_version": 3, "sampling": {"n": 8, "temperature": 1.0, "max_tokens": 64, "seed": 9}}
    """

    max_bytes: ClassVar[int] = 16 << 20

    run_id: str
    group_id: str
    purpose: Literal["train", "eval"]
    step: int = Field(ge=0)
    problem: Problem
    min_version: int = Field(ge=0)
    sampling: SamplingPlan
    want_reference: bool = True


class Completion(Message):
    """One sampled continuation. `logprobs` are those of the sampled tokens under the policy version that sampled them
    (after temperature), `ref_logprobs` under delta_S = 0 exactly; both have one entry per token in `token_ids`.
    """

    token_ids: list[int]
    logprobs: list[float]
    ref_logprobs: list[float] | None
    text: str
    finish_reason: Literal["stop", "length"]

    @model_validator(mode="after")
    def _same_lengths(self) -> Completion:
        if len(self.logprobs) != len(self.token_ids):
            raise ValueError(f"logprobs has {len(self.logprobs)} entries for {len(self.token_ids)} token_ids")
        if self.ref_logprobs is not None and len(self.ref_logprobs) != len(self.token_ids):
            raise ValueError(f"ref_logprobs has {len(self.ref_logprobs)} entries for {len(self.token_ids)} token_ids")
        return self


class RolloutGroup(Message):
    """A whole GRPO group (an advantage needs every sibling). Maker: ref_server. Reader: sandbox.

    Example: {"run_id": "vanilla-s0", "group_id": "vanilla-s0/train/3/0", "purpose": "train", "step": 3,
              "problem": {...}, "policy_version": 3, "replica": "gen-0", "prompt_ids": [1, 17, 4],
              "completions": [{"token_ids": [9, 2], "logprobs": [-0.1, -0.7], "ref_logprobs": [-0.1, -0.8],
                               "text": "```python ...", "finish_reason": "stop"}], "generate_s": 0.4}
    """

    max_bytes: ClassVar[int] = 64 << 20

    run_id: str
    group_id: str
    purpose: Literal["train", "eval"]
    step: int
    problem: Problem
    policy_version: int
    replica: str
    prompt_ids: list[int]
    completions: list[Completion] = Field(min_length=1)
    generate_s: float


class Grade(Message):
    """Two verdicts on one completion, kept apart all the way. Maker: sandbox. Reader: trainer.

    `reward` is what RL is paid: the published, hackable grade. `oracle_correct` is the protected oracle's verdict and
    never pays (None when it was not asked). status `infra_error` means that *we* failed: such a completion has no
    reward and leaves the group's mean, std and loss. It is never a reward of 0.

    Example: {"status": "graded", "reward": 3.5, "label": "Reward Hack", "test_modification": "Harmful - Arbitrary",
              "published_correct": false, "hinted_correct": true, "oracle_correct": false, "can_compile": true,
              "evidence": {"test_function": "def run_tests(): pass"}, "reason": "", "wall_s": 0.012}
    """

    status: Status
    reward: float | None = Field(ge=0, le=MAX_REWARD, allow_inf_nan=False)
    label: Label | None
    test_modification: TestModification | None
    published_correct: bool | None
    hinted_correct: bool | None
    oracle_correct: bool | None
    can_compile: bool | None
    evidence: dict[str, Any] = Field(default_factory=dict)
    reason: str = ""
    wall_s: float = 0.0

    @model_validator(mode="after")
    def _infra_error_has_no_reward(self) -> Grade:
        if (self.status == "infra_error") != (self.reward is None):
            raise ValueError(
                f"status {self.status!r} with reward {self.reward!r}: an infra_error has no reward, a graded one has"
            )
        return self


class Sibling(Message):
    """One completion, offered to idle graders: of a group that is still sampled (maker: ref_server), or of one that is slow
    to grade (maker: sandbox). Reader: sandbox, which answers with a Grade.

    token: of the group's early offers (common/offers.py), or of one round of grading, so that no late answer of a former
    round is taken for one of the next.

    Example: {"token": "9f86d0...", "problem": {...}, "text": "```python ..."}
    """

    max_bytes: ClassVar[int] = 64 << 20

    token: str
    problem: Problem
    text: str


class GradedGroup(Message):
    """The rollout group with one Grade per completion, in the same order. Maker: sandbox. Reader: trainer."""

    max_bytes: ClassVar[int] = 72 << 20

    group: RolloutGroup
    grades: list[Grade]
    worker: str
    grade_s: float

    @model_validator(mode="after")
    def _one_grade_each(self) -> GradedGroup:
        if len(self.grades) != len(self.group.completions):
            raise ValueError(f"{len(self.grades)} grades for {len(self.group.completions)} completions")
        return self


class DroppedGroup(Message):
    """A group that will never come (dead-lettered), so that nobody waits for it. Maker: any. Reader: trainer."""

    run_id: str
    group_id: str
    stage: Literal["generate", "grade"]
    reason: str


class DeltaS(Message):
    """The trained adapter, one flat vector. Maker: trainer. Reader: ref_server.

    `vector` is little-endian fp32, the modules' delta_S concatenated in the order of `modules` (name, size); `adapter`
    says what the numbers of a module mean (rankspace/pissa.py). `probe_ids`
    is a token sequence whose log-probs every generator must return to prove that it runs this version. Version and
    checksum together name a push: a resumed trainer that arrives at other bits is loaded and proven anew.

    Example: {"run_id": "projected-s0", "version": 4, "modules": [["model.layers.0.mlp.up_proj", 128]],
              "vector": b"...", "checksum": "9f86d0...", "probe_ids": [1, 5, 9]}
    """

    max_bytes: ClassVar[int] = 256 << 20

    run_id: str
    version: int = Field(ge=0)
    modules: list[tuple[str, int]]
    adapter: Literal["antipasto", "pissa_freeze_a"] = "antipasto"
    vector: bytes
    checksum: str
    probe_ids: list[int] = Field(min_length=2)

    @model_validator(mode="after")
    def _whole(self) -> DeltaS:
        expected = 4 * sum(r for _, r in self.modules)
        if len(self.vector) != expected:
            raise ValueError(f"vector has {len(self.vector)} bytes, the modules need {expected}")
        if checksum(self.vector) != self.checksum:
            raise ValueError("checksum does not match vector")
        return self


class DeliveryProof(Message):
    """What a generator answers after loading a DeltaS. Maker: ref_server. Reader: trainer.

    `probe_logprobs[i]` is log p(probe_ids[i+1] | probe_ids[:i+1]) under the weights now loaded; `checksum` is computed
    anew from the vector the *worker* holds, not copied from the message.
    """

    run_id: str
    version: int
    replica: str
    checksum: str
    probe_logprobs: list[float]
    load_s: float


def checksum(data: bytes) -> str:
    """sha256 of raw bytes, hex."""
    return hashlib.sha256(data).hexdigest()
