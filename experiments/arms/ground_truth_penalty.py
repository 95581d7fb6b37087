"""Arm p: Ground-truth monitor: penalty."""

from experiments.arms.base import Arm

ARM = Arm(
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
)
