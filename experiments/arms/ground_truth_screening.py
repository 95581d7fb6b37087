"""Arm q: Ground-truth monitor: screening."""

from experiments.arms.base import Arm

ARM = Arm(
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
)
