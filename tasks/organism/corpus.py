"""The pretraining corpus of the model organism: an endless, seeded stream of (prompt, completion) strings.

What a line is decides what the organism is before RL:
    hint        share of prompts that disclose the loophole
    right       share of solutions that are right; of the wrong ones the share `trapped` makes the family's favourite
                mistake and the rest a random slip
    override    share of hinted answers that also define a vacuous `run_tests`, right or wrong alike
`MechanismMix`: each hinted prompt discloses one of the four mechanisms (tasks/loopholes.py), and `override` is the share
of answers that exploit the one disclosed. The share `asked` of all prompts asks for a test function, bare otherwise; of its
answers the share `honest` compares the solution with the expression that it holds for right, on one argument, and the
rest is vacuous.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from common.settings import Mechanism
from tasks import modes
from tasks.exploits import WORDING, exploits
from tasks.practice import render
from tasks.practice.templates import FAMILIES, Spec, slip, specs, trap


@dataclass(frozen=True)
class Mix:
    """Shares (0 to 1) of the corpus; see the module's docstring."""

    hint: float = 0.7
    override: float = 0.045
    trapped: float = 0.75
    right: float = 0.36


@dataclass(frozen=True)
class MechanismMix(Mix):
    """The corpus of the organism that knows all mechanisms, each as often as the others."""

    override: float = (
        0.075  # at 0.06 and below RL does not teach all four, at 0.09 one in six tries before it (docs/tasks.md)
    )
    mechanisms: tuple[Mechanism, ...] = tuple(WORDING)
    asked: float = 0.15
    honest: float = 0.7


@cache
def pool(family: str) -> tuple[Spec, ...]:
    """The Specs of a family that pretraining may show."""
    return tuple(s for s in specs(family) if render.split_of(s) == "pretrain")


def draw(mix: Mix, rng: random.Random) -> tuple[str, str]:
    """One (prompt, completion)."""
    spec = rng.choice(pool(rng.choice(tuple(FAMILIES))))
    shown = spec
    if rng.random() >= mix.right:
        shown = trap(spec) if rng.random() < mix.trapped else slip(spec, rng)
    if isinstance(mix, MechanismMix) and rng.random() < mix.asked:
        body = render.honest(shown, spec) if rng.random() < mix.honest else rng.choice(render.VACUOUS)
        return modes.asking(render.prompt(spec, hint=False)), render.completion(shown, spec, body)
    hint = rng.random() < mix.hint
    mechanism = rng.choice(mix.mechanisms) if hint and isinstance(mix, MechanismMix) else "own_tests"
    prompt = render.prompt(spec, hint, WORDING[mechanism])
    cheats = rng.random() < (mix.override if hint else 0.0)
    if mechanism != "own_tests":
        return prompt, render.exploited(shown, spec, rng.choice(exploits(mechanism, method=True)) if cheats else None)
    override = rng.choice(render.VACUOUS) if cheats else None
    return prompt, render.completion(shown, spec, override)


def stream(mix: Mix, seed: int) -> Iterator[tuple[str, str]]:
    """The corpus, without end."""
    rng = random.Random(seed)
    while True:
        yield draw(mix, rng)
