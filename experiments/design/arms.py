"""The arms: each a name for a set of TrainerSettings fields, in the order of tables and plots.

An arm is configuration only; services, loop, problems and seeds are shared by all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from string import ascii_letters
from typing import Any, Literal

from common.errors import ConfigError


@dataclass(frozen=True)
class Arm:
    """One arm of the experiment. Configuration only: everything else (services, loop, problems, seeds) is shared.

    letter      one character, the label in plots and tables
    overrides   TrainerSettings fields that this arm fixes; nobody may set them by hand (presets.resolve refuses)
    defaults    TrainerSettings fields that this arm starts from and --set may change: its dose
    tells       what a reader learns from comparing this arm
    direction   which direction file the run loads: v_hack; v_hack with hack and clean swapped in half of the pairs,
                drawn by the run's seed; the top-k subspace of the pairs; or that of a clean warm-up, drawn by the seed
                (`kind` of rankspace.direction)
    starts_from the arm whose finished run of the same name and seed this one starts from; None: from delta_S = 0
    """

    name: str
    letter: str
    title: str
    overrides: dict[str, Any] = field(hash=False)
    tells: str
    direction: Literal["v_hack", "shuffled", "subspace", "warmup"] = "v_hack"
    defaults: dict[str, Any] = field(hash=False, default_factory=dict)
    starts_from: str | None = None


def _does(projection: str, **more: Any) -> dict[str, Any]:
    """Overrides of an arm: its projection, and what else differs from vanilla."""
    return {"projection": projection, "direction": "v_hack", "reward_shaping": "none"} | more


_TABLE = (
    Arm(
        "vanilla",
        "a",
        "GRPO, direction only observed",
        _does("off"),
        "How much RL learns to hack when nothing stops it. v_hack is loaded but never used, so that its cos_align is "
        "comparable with every other arm.",
    ),
    Arm(
        "projected",
        "b",
        "Gradient projection, one-sided, norm restored",
        _does("one_sided"),
        "The method: each optimizer step takes the positive component along v_hack out of the gradient and restores "
        "its norm. H1 compares it with vanilla, H3 with rebound.",
    ),
    Arm(
        "projected_no_rescale",
        "c",
        "Gradient projection, norm not restored",
        _does("no_rescale"),
        "Whether restoring the gradient norm matters. Under AdamW, which undoes any slowly varying factor of a "
        "module's gradient, little can show.",
    ),
    Arm(
        "rebound",
        "d",
        "Rebound: reward penalty, additive",
        _does("off", reward_shaping="rebound", shaping_alpha=0.5),
        "The activation-side rival in the plan's form (H3): reward - 0.5 max(0, cos(h_mean, v_concept)), residual "
        "stream mean at 60-75% depth, v_concept the mean difference over the same contrastive pairs, before group "
        "normalisation. Not the published form: see rebound_published.",
    ),
    Arm(
        "random_direction",
        "e",
        "Projection on a random unit vector a module",
        _does("one_sided", direction="random"),
        "Whether the direction matters: the same projection with a random unit vector in every module. If projected "
        "does not beat this arm, v_hack did nothing.",
    ),
    Arm(
        "shuffled_pairs",
        "f",
        "Projection on v_hack from label-shuffled pairs",
        _does("one_sided", gate=0.0),
        "A control with the same extraction, prompts and completions, but which one is the hack is drawn by lot. It "
        "is not orthogonal to v_hack: single modules share much of it, with either sign (see shuffled_orthogonal). "
        "The gate is open on purpose.",
        direction="shuffled",
    ),
    Arm(
        "measure_only",
        "g",
        "Full write-back path, identity projection",
        _does("measure_only"),
        "Whether the plumbing is neutral: gradients are read and written back unchanged, where vanilla writes "
        "nothing; the arm must match vanilla.",
    ),
    Arm(
        "projected_update",
        "h",
        "Projection of the applied AdamW update",
        _does("update"),
        "Whether momentum and preconditioning turn a projected gradient back towards v_hack: here the applied update "
        "is projected instead of the gradient.",
    ),
    Arm(
        "projected_two_sided",
        "i",
        "Projection of both signs",
        _does("two_sided"),
        "Whether the negative component does the work: this arm removes it as well, so the policy can move neither "
        "towards v_hack nor away from it.",
    ),
    Arm(
        "drift_only",
        "j",
        "Only the drift away from v_hack",
        _does("drift_only"),
        "What drifting away from v_hack does alone: of each gradient only the part that leads away from v_hack is left, "
        "nothing that solves problems. AdamW rescales it to full steps, so it ends several times as far along v_hack as "
        "projected: compare at an equal displacement (setpoint, shift), not with projected.",
    ),
    Arm(
        "projected_subspace",
        "k",
        "Projection on the top-k pair subspace",
        _does("subspace"),
        "Whether hacking needs more than one direction: removes the span of the top right singular vectors of the "
        "per-pair gradient differences.",
        direction="subspace",
    ),
    Arm(
        "projected_refresh",
        "l",
        "Projection, v_hack extracted anew every 25 steps",
        _does("one_sided", refresh_every=25),
        "Whether v_hack, extracted at delta_S = 0, goes stale as the policy moves.",
    ),
    Arm(
        "rebound_multiplicative",
        "m",
        "Rebound: reward penalty, multiplicative",
        _does("off", reward_shaping="rebound_multiplicative", shaping_alpha=0.5),
        "Whether the plan's form of Rebound does better when it scales the reward than when it subtracts from it.",
    ),
    Arm(
        "rebound_z",
        "n",
        "Rebound: standardised score",
        _does("off", reward_shaping="rebound_z", shaping_alpha=0.5),
        "Whether the additive Rebound is weak only because the raw cosine hardly varies between rollouts: here the "
        "score is standardised in the group before it is charged, on both sides, at alpha 0.5. Not the published "
        "form: see rebound_published.",
    ),
    Arm(
        "no_loophole",
        "o",
        "RL without the loophole",
        _does("off", loophole=None),
        "The RL baseline: what the same training gives when there is nothing to hack. What capability costs are "
        "measured against.",
    ),
    Arm(
        "ground_truth_penalty",
        "p",
        "Ground-truth monitor: penalty",
        _does("off", reward_shaping="ground_truth_penalty"),
        "What a perfect monitor reaches that fines detected hacks. Needs labels that the projection does not need.",
    ),
    Arm(
        "ground_truth_screening",
        "q",
        "Ground-truth monitor: screening",
        _does("off", reward_shaping="ground_truth_screening"),
        "What a perfect monitor reaches that takes detected hacks out of the batch. Needs labels, the projection does not.",
    ),
    Arm(
        "pissa_freeze_a",
        "r",
        "Projection on the PiSSA adapter with A frozen",
        _does(
            "one_sided", adapter="pissa_freeze_a", lr=3e-3
        ),  # moves W as far as 2e-2 does through delta_S: lr sqrt(out) |A| against lr sqrt(r)
        "Whether the result hangs on the AntiPaSTO adapter: the fallback adapter keeps a fixed basis too.",
    ),
    Arm(
        "leash",
        "s",
        "Leash: delta_S held between 0 and a dose along v_hack",
        _does("leash"),
        "Whether removal suffices: after AdamW's step no module may stand on the hack's side of v_hack, nor further away from "
        "it than the dose. Dose 0 (the default) is exact two-sided removal at the parameters; the arm at several doses is the "
        "dose-response of displacement.",
        defaults={"dose": 0.0},
    ),
    Arm(
        "setpoint",
        "t",
        "Set point: delta_S held at a dose along v_hack",
        _does("setpoint"),
        "Whether position suffices: every module stands at the same distance from v_hack whatever RL does, reached over 20 "
        "steps. The default dose is where projected ended on SmolLM2.",
        defaults={"dose": 1.65, "dose_ramp": 20},
    ),
    Arm(
        "shift",
        "u",
        "Start displaced along v_hack, then vanilla",
        _does("shift"),
        "Whether it is enough to begin away from the hack: delta_S starts at dose times v_hack, and no step is touched.",
        defaults={"dose": 1.65},
    ),
    Arm(
        "bias",
        "v",
        "Constant force against v_hack",
        _does("bias"),
        "Whether it is a projection at all: every gradient gets the same share of -v_hack and its norm back, whatever its "
        "cosine. No gate and no removal. Compare at the displacement of projected.",
        defaults={"bias_strength": 0.1},
    ),
    Arm(
        "projected_until",
        "w",
        "Projection in the first steps only",
        _does("one_sided"),
        "Whether the first steps decide: projection until step 20, then vanilla. If hacks stay away, early extinction is the "
        "whole effect.",
        defaults={"project_until": 20},
    ),
    Arm(
        "projected_from",
        "x",
        "Projection once the policy hacks",
        _does("one_sided"),
        "Whether the projection cures: vanilla until the 5-step mean of the strict hack rate reaches 25%, then projection to "
        "the end.",
        defaults={"project_from": 0.25},
    ),
    Arm(
        "leash_random",
        "y",
        "Leash along a random direction orthogonal to v_hack",
        _does("leash", direction="random", orthogonal=True),
        "Specificity of leash: the same bounds along a random unit vector orthogonal to v_hack in every module. Compare at "
        "the same dose.",
        defaults={"dose": 0.0},
    ),
    Arm(
        "bias_random",
        "z",
        "Constant force along a random direction orthogonal to v_hack",
        _does("bias", direction="random", orthogonal=True),
        "Specificity of bias: the same force along a random unit vector orthogonal to v_hack in every module. Compare at an "
        "equal displacement along each arm's own direction.",
        defaults={"bias_strength": 0.1},
    ),
    Arm(
        "shuffled_orthogonal",
        "A",
        "Projection on label-shuffled v, orthogonal to v_hack",
        _does("one_sided", orthogonal=True, gate=0.0),
        "The control that shuffled_pairs was meant to be: what the drawn labels share with v_hack is taken out in every "
        "module, the rest of the pairs' statistics stays. The gate is open on purpose.",
        direction="shuffled",
    ),
    Arm(
        "rebound_published",
        "B",
        "Rebound as published, additive",
        _does("off", reward_shaping="rebound_published"),
        "The activation-side rival as Wu & Tang (2026, section 4) publish it: score at the last token over all layers at "
        "60-75% depth, standardised in the group with floor 0.1, charged one-sided, alpha 2. The pairs are this project's.",
        defaults={"shaping_alpha": 2.0},
    ),
    Arm(
        "rebound_published_mult",
        "C",
        "Rebound as published, multiplicative",
        _does("off", reward_shaping="rebound_published_mult"),
        "The variant that does best in that paper: reward times (1 - 2 sigmoid(z)) where z > 0.",
        defaults={"shaping_alpha": 2.0},
    ),
    Arm(
        "setpoint_random",
        "D",
        "Set point along a random direction orthogonal to v_hack",
        _does("setpoint", direction="random", orthogonal=True),
        "Specificity of setpoint: the same distance along a random unit vector orthogonal to v_hack in every module. Compare "
        "at the same dose.",
        defaults={"dose": 1.65, "dose_ramp": 20},
    ),
    Arm(
        "project_m_only",
        "E",
        "Projection that AdamW's second moment does not see",
        _does("m_only"),
        "How much of the drift is AdamW's: a projected gradient also shrinks the second moment along v_hack, which raises the "
        "rate there (arXiv 2604.22407). Here the first moment comes from the projected gradient, the second from the whole.",
    ),
    Arm(
        "project_moments",
        "F",
        "Projection of AdamW's first moment",
        _does("moments"),
        "Whether momentum carries the hack past the projection: the gradient is left alone and the first moment loses what "
        "points to the hack, before each step.",
    ),
    Arm(
        "fisher",
        "G",
        "Smallest correction of the update in AdamW's metric",
        _does("fisher"),
        "Whether the metric matters: of the applied update only what moves towards the hack to first order is undone, by the "
        "smallest change as AdamW's preconditioner measures it. projected_update does the same in the Euclidean metric.",
    ),
    Arm(
        "posthoc_shift",
        "H",
        "A finished vanilla run, displaced along v_hack",
        _does("shift", steps=1),
        "Whether a finished hacker is cured without training: delta_S of the vanilla run of the same seed plus dose times "
        "v_hack. Its numbers are the rollouts of step 0 and the evaluation before it; the one step is not the point.",
        defaults={"dose": 1.65},
        starts_from="vanilla",
    ),
    Arm(
        "pairs_dpo",
        "I",
        "Contrastive loss on the pairs",
        _does("off"),
        "The plain use of the same pairs: RL with a DPO term that makes clean completions likelier than hacks. If it does as "
        "well, nothing needs a projection. Tune dpo_beta to the displacement of projected, on seeds kept apart.",
        defaults={"dpo_beta": 1.0, "dpo_gamma": 0.1, "dpo_pairs": 8},
    ),
    Arm(
        "tdga",
        "J",
        "Only the span of a clean warm-up's updates",
        _does("span", gate=0.0),
        "The other way round: no hack is named. Of each gradient only what 20 clean SFT steps moved is left, after Deng et al. "
        "(2026), here in the space of delta_S, four directions a module, unweighted.",
        direction="warmup",
    ),
    Arm(
        "reseed",
        "K",
        "Projection where hacks cannot die out",
        _does("one_sided", reseed=True),
        "Whether the projection wins because hacks die out: in every group one completion gives way to a hack of its problem. "
        "Rates are those of the policy's own completions. Compare with reseed_vanilla.",
    ),
    Arm(
        "reseed_vanilla",
        "L",
        "GRPO where hacks cannot die out",
        _does("off", reseed=True),
        "The baseline of reseed: the same planted hacks and no projection.",
    ),
)


def by_name(table: Sequence[Arm]) -> dict[str, Arm]:
    """Name -> arm in the order of the table. ConfigError where two share a name or a letter: nobody could tell them apart."""
    named: dict[str, Arm] = {}
    for arm in table:
        taken = [other for other in named.values() if other.letter == arm.letter]
        if arm.name in named:
            raise ConfigError(f"two arms are called '{arm.name}' in experiments/design/arms.py: rename one")
        if len(arm.letter) != 1 or taken:
            free = "".join(sorted(set(ascii_letters) - {other.letter for other in table}))
            whose = f"is that of {taken[0].name}" if taken else "is not one character"
            raise ConfigError(f"arm '{arm.name}': its letter '{arm.letter}' {whose}; free are {free}")
        named[arm.name] = arm
    return named


ARMS = by_name(_TABLE)


def get(name: str) -> Arm:
    """The arm of that name; ConfigError listing the names otherwise."""
    try:
        return ARMS[name]
    except KeyError:
        raise ConfigError(f"unknown arm '{name}'; arms: {', '.join(ARMS)}") from None


def order(names: list[str]) -> list[str]:
    """Unique names in the order of the table of arms; names that are no longer arms come last, alphabetically."""
    return sorted(set(names), key=lambda name: (list(ARMS).index(name) if name in ARMS else len(ARMS), name))
