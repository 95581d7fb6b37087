"""Arm l: Projection, v_hack extracted anew every 25 steps."""

from experiments.arms.base import Arm

ARM = Arm(
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
)
