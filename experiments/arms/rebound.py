"""Arm d: Rebound: reward penalty, additive."""

from experiments.arms.base import Arm

ARM = Arm(
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
)
