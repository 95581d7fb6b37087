"""KL to the reference over all completions of a step, from the log-probs that came with them. Pure.

    d_t  = logp_ref_t − logp_sampled_t
    k3_t = exp(d_t) − d_t − 1          under the sampling policy, which is what k3 needs (Schulman 2020)

`kl` of the loss covers only the rows that were trained on, a share that differs between arms. `kl_all` covers every
token that was sampled, so arms can be compared by it. It costs no forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from common.types import Completion, GradedGroup

MAX_LOG_RATIO = 20.0  # beyond, exp would let one damaged token decide the mean; rankspace/loss.py clamps alike


def log_prob_sums(completion: Completion) -> dict[str, float | None]:
    """Sums over the tokens of one completion, in nats; with its number of tokens they give its KL again.

    `logprob_sum`: sampled; `ref_logprob_sum`, `k3_sum`: None where the generator sent no reference log-probs.
    """
    sampled = sum(completion.logprobs)
    if completion.ref_logprobs is None:
        return {"logprob_sum": sampled, "ref_logprob_sum": None, "k3_sum": None}
    k3 = sum(map(_k3, completion.logprobs, completion.ref_logprobs))
    return {"logprob_sum": sampled, "ref_logprob_sum": sum(completion.ref_logprobs), "k3_sum": k3}


def mean_kl(groups: Sequence[GradedGroup]) -> float | None:
    """k3 in nats a token over all tokens that have reference log-probs; None where there are none."""
    measured = [c for g in groups for c in g.group.completions if c.ref_logprobs is not None]
    tokens = sum(len(c.token_ids) for c in measured)
    return math.fsum(log_prob_sums(c)["k3_sum"] or 0.0 for c in measured) / tokens if tokens else None


def _k3(sampled: float, reference: float) -> float:
    d = max(-MAX_LOG_RATIO, min(MAX_LOG_RATIO, reference - sampled))
    return math.expm1(d) - d
