"""Arm m: Rebound: reward penalty, multiplicative."""

from experiments.arms.base import Arm

ARM = Arm(
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
)
