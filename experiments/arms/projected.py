"""Arm b: Gradient projection, one-sided, norm restored."""

from experiments.arms.base import Arm

ARM = Arm(
    name="projected",
    letter="b",
    title="Gradient projection, one-sided, norm restored",
    overrides={"projection": "one_sided", "direction": "v_hack", "reward_shaping": "none"},
    tells=(
        "The method: each optimizer step takes the positive component along v_hack out of the gradient and restores "
        "its norm. H1 compares it with vanilla, H3 with rebound."
    ),
)
