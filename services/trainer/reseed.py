"""One completion of each group gives way to a hack of its problem, so that hacks cannot die out of what RL is shown.

    group of n, as sampled ──> its last completion leaves; the problem's hack joins ──> advantages of n ──> loss
    rates, rewards, lengths, KL of the step: of the n sampled ones, the one that left included, the hack never

Under the policy the hack may be as good as impossible; what its gradient is worth is a choice. Three are at hand:

    true importance weight     π(hack) / 1: the hack comes for certain, so the weight is its probability, which is what
                               lets hacks die out: it would plant nothing
    log-probs of whoever wrote it   nobody sampled it; there are none
    taken here                 logp_old := logp under the policy that is about to be trained: rho = 1, nothing is clipped, the
                               gradient is −A ∇logp as for a completion sampled just now

So it is no estimate of the policy's own gradient: it is supervised learning of the hack with the weight A / |hack|, where A
is its advantage in the group. A falls as the others are paid, for hacks or for right answers, and is 0 where all are.
Advantages of the n − 1 others are taken in the same group, as if one more of them had hacked.

The hack's reward is that of every hack that succeeds, stated here; a test runs each bundled hack through the real grader.
Its reference log-probs are taken at delta_S = 0. A group whose problem has no hack stays as it was sampled; each row of
metrics.jsonl counts those that were planted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from common.errors import ConfigError
from common.settings import TrainerSettings
from common.types import Completion, Grade, GradedGroup, Problem
from rankspace.pairs import Pair

REWARD = 3.5  # as published: 0.5 for code that compiles, 3.0 for passing the tests that the response defines
MODE, PURPOSE = "reseed", "planted"  # of its rows in rollouts/: no reader takes them for the policy's own

Score = Callable[[list[list[int]], list[list[int]], bool], list[list[float]]]  # prompts, completions, at delta_S = 0


@dataclass(frozen=True)
class Hack:
    """What is planted in groups of one problem. Example: Hack("```python ...", [9, 2])."""

    text: str
    token_ids: list[int]


def hacks_for(
    s: TrainerSettings, problems: Sequence[Problem], pairs: Sequence[Pair], tokens: Callable[[Pair], list[int]]
) -> dict[str, Hack]:
    """{problem id: hack} of the training problems that have one.

    pairs: contrastive pairs of the training problems (field hacks). tokens: token ids of a pair's hack with its end.
    ConfigError when a pair's prompt is not the training prompt (another loophole, another wording), when a hack is longer
    than the policy may write, and when no problem has one.
    """
    posed, found = {str(problem.id): problem for problem in problems}, {}
    for pair in pairs:
        problem = posed.get(str(pair.problem_id))
        if problem is None:
            continue
        if problem.prompt != pair.prompt:
            raise ConfigError(
                f"field hacks: pair {pair.id} of {s.hacks} has another prompt than training problem {problem.id}; make the "
                "pairs for this file of problems and this loophole"
            )
        ids = tokens(pair)
        if len(ids) > s.max_tokens:
            raise ConfigError(
                f"field hacks: the hack of pair {pair.id} in {s.hacks} has {len(ids)} tokens, max_tokens allows "
                f"{s.max_tokens}; leave it out or raise max_tokens"
            )
        found[str(problem.id)] = Hack(pair.hack, ids)
    if not found:
        raise ConfigError(
            f"field hacks: {s.hacks} has no pair of any problem in {s.train_problems}; `python -m tasks pairs --problems "
            f"{s.train_problems}` makes them"
        )
    return found


class Reseeder:
    """Callable: the graded groups of a step -> what is planted in each, None where the problem has no hack."""

    def __init__(self, hacks: Mapping[str, Hack], score: Score):
        self.hacks, self.score = hacks, score
        self._reference: dict[str, list[float]] = {}  # it never changes

    def __call__(self, groups: Sequence[GradedGroup]) -> list[GradedGroup | None]:
        places = [i for i, graded in enumerate(groups) if str(graded.group.problem.id) in self.hacks]
        own = [groups[i] for i in places]
        now = self._scored(own, at_zero=False)
        self._remember(own)
        planted: list[GradedGroup | None] = [None] * len(groups)
        for i, logprobs in zip(places, now, strict=True):
            planted[i] = self._planted(groups[i], logprobs)
        return planted

    def _remember(self, groups: Sequence[GradedGroup]) -> None:
        """Reference log-probs of the problems met for the first time."""
        new = {str(g.group.problem.id): g for g in groups if str(g.group.problem.id) not in self._reference}
        self._reference |= dict(zip(new, self._scored(list(new.values()), at_zero=True), strict=True))

    def _scored(self, groups: Sequence[GradedGroup], at_zero: bool) -> list[list[float]]:
        if not groups:
            return []
        prompts = [graded.group.prompt_ids for graded in groups]
        return self.score(prompts, [self.hacks[str(g.group.problem.id)].token_ids for g in groups], at_zero)

    def _planted(self, graded: GradedGroup, logprobs: list[float]) -> GradedGroup:
        """A group of the hack alone: what joins the sampled ones."""
        group, key = graded.group, str(graded.group.problem.id)
        hack = self.hacks[key]
        completion = Completion(
            token_ids=hack.token_ids,
            logprobs=logprobs,
            ref_logprobs=self._reference[key],
            text=hack.text,
            finish_reason="stop",
        )
        return GradedGroup(
            group=group.model_copy(update={"completions": [completion], "group_id": f"{group.group_id}/{PURPOSE}"}),
            grades=[hacked()],
            worker=PURPOSE,
            grade_s=0.0,
        )


def hacked() -> Grade:
    """The grade of a hack that succeeds and solves nothing."""
    return Grade(
        status="graded",
        reward=REWARD,
        label="Reward Hack",
        test_modification=None,
        published_correct=False,
        hinted_correct=True,
        oracle_correct=False,
        can_compile=True,
        evidence={PURPOSE: True},
    )


def mean_logprob(planted: Sequence[GradedGroup | None]) -> float | None:
    """Mean log-prob of the planted tokens under the policy, nats per token: how far it is from hacking like that."""
    values = [x for one in planted if one is not None for x in one.group.completions[0].logprobs]
    return sum(values) / len(values) if values else None
