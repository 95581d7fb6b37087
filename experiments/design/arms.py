"""The arms: each a name for a set of TrainerSettings fields, in the order of tables and plots.

An arm is configuration only; services, loop, problems and seeds are shared by all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from common.errors import ConfigError


@dataclass(frozen=True)
class Arm:
    """One arm of the experiment. Configuration only: everything else (services, loop, problems, seeds) is shared.

    letter      one character, the label in plots and tables
    overrides   TrainerSettings fields that this arm fixes; nobody may set them by hand (presets.resolve refuses)
    tells       what a reader learns from comparing this arm
    direction   which direction file the run loads: v_hack; v_hack with hack and clean swapped in half of the pairs,
                drawn by the run's seed; or the top-k subspace of the pairs (`kind` of rankspace.direction)
    """

    name: str
    letter: str
    title: str
    overrides: dict[str, Any] = field(hash=False)
    tells: str
    direction: Literal["v_hack", "shuffled", "subspace"] = "v_hack"


_TABLE = (
    Arm(
        name="vanilla",
        letter="a",
        title="GRPO, direction only observed",
        overrides={"projection": "off", "direction": "v_hack", "reward_shaping": "none"},
        tells=(
            "How much RL learns to hack when nothing stops it. v_hack is loaded but never used, so that its cos_align is "
            "comparable with every other arm."
        ),
    ),
    Arm(
        name="projected",
        letter="b",
        title="Gradient projection, one-sided, norm restored",
        overrides={"projection": "one_sided", "direction": "v_hack", "reward_shaping": "none"},
        tells=(
            "The method: each optimizer step takes the positive component along v_hack out of the gradient and restores "
            "its norm. H1 compares it with vanilla, H3 with rebound."
        ),
    ),
    Arm(
        name="projected_no_rescale",
        letter="c",
        title="Gradient projection, norm not restored",
        overrides={"projection": "no_rescale", "direction": "v_hack", "reward_shaping": "none"},
        tells=("Whether restoring the norm matters: without it, a projected step is also a shorter step."),
    ),
    Arm(
        name="rebound",
        letter="d",
        title="Rebound: reward penalty, additive",
        overrides={
            "projection": "off",
            "direction": "v_hack",
            "reward_shaping": "rebound",
            "shaping_alpha": 0.5,
        },
        tells=(
            "The activation-side rival (H3): reward - 0.5 max(0, cos(h_mean, v_concept)), residual stream mean at 60-75% "
            "depth, v_concept the mean difference over the same contrastive pairs, before group normalisation."
        ),
    ),
    Arm(
        name="random_direction",
        letter="e",
        title="Projection on a random unit vector a module",
        overrides={"projection": "one_sided", "direction": "random", "reward_shaping": "none"},
        tells=(
            "The control that decides whether the direction matters: the same projection with a random unit vector in "
            "every module. If projected does not beat this arm, v_hack did nothing."
        ),
    ),
    Arm(
        name="shuffled_pairs",
        letter="f",
        title="Projection on v_hack from label-shuffled pairs",
        overrides={
            "projection": "one_sided",
            "direction": "v_hack",
            "reward_shaping": "none",
            "gate": 0.0,
        },
        tells=(
            "A harder control than random_direction: same extraction, same prompts, same completions, but which one is the "
            "hack is drawn by lot. It shares every property of v_hack except its meaning. The gate is open on purpose."
        ),
        direction="shuffled",
    ),
    Arm(
        name="measure_only",
        letter="g",
        title="Full write-back path, identity projection",
        overrides={
            "projection": "measure_only",
            "direction": "v_hack",
            "reward_shaping": "none",
        },
        tells=(
            "That the plumbing is neutral: gradients are read, written back unchanged, and the arm must match vanilla."
        ),
    ),
    Arm(
        name="projected_update",
        letter="h",
        title="Projection of the applied AdamW update",
        overrides={"projection": "update", "direction": "v_hack", "reward_shaping": "none"},
        tells=(
            "Whether momentum and preconditioning turn a projected gradient back towards v_hack: here the applied update "
            "is projected instead of the gradient."
        ),
    ),
    Arm(
        name="projected_two_sided",
        letter="i",
        title="Projection of both signs",
        overrides={"projection": "two_sided", "direction": "v_hack", "reward_shaping": "none"},
        tells=(
            "Whether the negative component does the work: this arm removes it as well, so the policy can move neither "
            "towards v_hack nor away from it."
        ),
    ),
    Arm(
        name="drift_only",
        letter="j",
        title="Only the drift away from v_hack",
        overrides={"projection": "drift_only", "direction": "v_hack", "reward_shaping": "none"},
        tells=(
            "Whether suppression needs RL at all: what is left of each step is the part that leads away from v_hack, "
            "nothing that solves problems. If this did as well as projected, drifting away from v_hack would be the whole "
            "effect."
        ),
    ),
    Arm(
        name="projected_subspace",
        letter="k",
        title="Projection on the top-k pair subspace",
        overrides={"projection": "subspace", "direction": "v_hack", "reward_shaping": "none"},
        tells=(
            "Whether hacking needs more than one direction: removes the span of the top right singular vectors of the "
            "per-pair gradient differences."
        ),
        direction="subspace",
    ),
    Arm(
        name="projected_refresh",
        letter="l",
        title="Projection, v_hack extracted anew every 25 steps",
        overrides={
            "projection": "one_sided",
            "direction": "v_hack",
            "reward_shaping": "none",
            "refresh_every": 25,
        },
        tells=("Whether v_hack, extracted at delta_S = 0, goes stale as the policy moves."),
    ),
    Arm(
        name="rebound_multiplicative",
        letter="m",
        title="Rebound: reward penalty, multiplicative",
        overrides={
            "projection": "off",
            "direction": "v_hack",
            "reward_shaping": "rebound_multiplicative",
            "shaping_alpha": 0.5,
        },
        tells=("Whether Rebound does better when it scales the reward than when it subtracts from it."),
    ),
    Arm(
        name="rebound_z",
        letter="n",
        title="Rebound: standardised score",
        overrides={
            "projection": "off",
            "direction": "v_hack",
            "reward_shaping": "rebound_z",
            "shaping_alpha": 0.5,
        },
        tells=(
            "Whether the additive Rebound is weak only because the raw cosine hardly varies between rollouts: here the "
            "score is standardised before it is charged. The strongest form of the rival that we know how to run."
        ),
    ),
    Arm(
        name="no_loophole",
        letter="o",
        title="RL without the loophole",
        overrides={
            "projection": "off",
            "direction": "v_hack",
            "reward_shaping": "none",
            "loophole": None,
        },
        tells=(
            "The RL baseline: what the same training gives when there is nothing to hack. The ceiling for the pass rate."
        ),
    ),
    Arm(
        name="ground_truth_penalty",
        letter="p",
        title="Ground-truth monitor: penalty",
        overrides={
            "projection": "off",
            "direction": "v_hack",
            "reward_shaping": "ground_truth_penalty",
        },
        tells=(
            "The strongest published intervention, with a perfect monitor: detected hacks are penalised. Needs labels "
            "that the projection does not need."
        ),
    ),
    Arm(
        name="ground_truth_screening",
        letter="q",
        title="Ground-truth monitor: screening",
        overrides={
            "projection": "off",
            "direction": "v_hack",
            "reward_shaping": "ground_truth_screening",
        },
        tells=(
            "The strongest published intervention, with a perfect monitor: detected hacks leave the batch. Needs labels "
            "that the projection does not need."
        ),
    ),
    Arm(
        name="pissa_freeze_a",
        letter="r",
        title="Projection on the PiSSA adapter with A frozen",
        overrides={
            "adapter": "pissa_freeze_a",
            "lr": 3e-3,  # moves W as far a step as 2e-2 does through delta_S: lr · sqrt(out) · ‖A‖ against lr · sqrt(r)
            "projection": "one_sided",
            "direction": "v_hack",
            "reward_shaping": "none",
        },
        tells=("Whether the result hangs on the AntiPaSTO adapter: the fallback adapter keeps a fixed basis too."),
    ),
)
ARMS: dict[str, Arm] = {arm.name: arm for arm in _TABLE}


def get(name: str) -> Arm:
    """The arm of that name; ConfigError listing the names otherwise."""
    try:
        return ARMS[name]
    except KeyError:
        raise ConfigError(f"unknown arm '{name}'; arms: {', '.join(ARMS)}") from None


def order(names: list[str]) -> list[str]:
    """Unique names in the order of the table of arms; names that are no longer arms come last, alphabetically."""
    rank = {name: position for position, name in enumerate(ARMS)}
    return sorted(set(names), key=lambda name: (rank.get(name, len(rank)), name))
