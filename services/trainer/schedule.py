"""The learning rate of a step. Pure.

w = lr_warmup_steps, n = steps, k = the step, from 0
k < w:   lr (k + 1) / w
k >= w:  lr f((k − w) / (n − w))    constant: f = 1;  linear: f(x) = 1 − x;  cosine: f(x) = (1 + cos(pi x)) / 2
"""

from __future__ import annotations

import math

from common.settings import TrainerSettings


def learning_rate(s: TrainerSettings, step: int) -> float:
    """Rate of step `step`; above 0 in every step of the run."""
    if step < s.lr_warmup_steps:
        return s.lr * (step + 1) / s.lr_warmup_steps
    share = (step - s.lr_warmup_steps) / max(1, s.steps - s.lr_warmup_steps)
    if s.lr_schedule == "linear":
        return s.lr * (1 - share)
    return s.lr * (1 + math.cos(math.pi * share)) / 2 if s.lr_schedule == "cosine" else s.lr
