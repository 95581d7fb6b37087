"""In which steps an arm intervenes: from the first, until a step, or from when the policy hacks. Pure.

    project_until K    steps k < K
    project_from H     from the first step k with mean(strict hack rates of steps k−4 .. k) >= H, and ever after
    on_alarm=project   from the step after the alarm's (alarm.py), and ever after

The rates are those of the rollouts that a step is trained on, known before its update, so step k itself is already
intervened in. They are kept in the checkpoint: a resumed run decides as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.settings import TrainerSettings

WINDOW = 5


def intervenes(s: TrainerSettings, k: int, rates: Sequence[float], alarmed: bool = False) -> bool:
    """Whether the arm acts in step k.

    rates: strict hack rate, share of rollouts, of steps 0 .. k that have one. alarmed: an alarm rang before step k.
    """
    if s.on_alarm == "project":
        return alarmed
    if s.project_until is not None:
        return k < s.project_until
    if s.project_from is not None:
        # any past window, not the last: once on, it stays on when the hacks are gone
        return any(sum(rates[i : i + WINDOW]) / WINDOW >= s.project_from for i in range(len(rates) - WINDOW + 1))
    return True
