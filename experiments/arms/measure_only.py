"""Arm g: Full write-back path, identity projection."""

from experiments.arms.base import Arm

ARM = Arm(
    name="measure_only",
    letter="g",
    title="Full write-back path, identity projection",
    overrides={
        "projection": "measure_only",
        "direction": "v_hack",
        "reward_shaping": "none",
    },
    tells=("That the plumbing is neutral: gradients are read, written back unchanged, and the arm must match vanilla."),
)
