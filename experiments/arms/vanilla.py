"""Arm a: GRPO, direction only observed."""

from experiments.arms.base import Arm

ARM = Arm(
    name="vanilla",
    letter="a",
    title="GRPO, direction only observed",
    overrides={"projection": "off", "direction": "v_hack", "reward_shaping": "none"},
    tells=(
        "How much RL learns to hack when nothing stops it. v_hack is loaded but never used, so that its cos_align is "
        "comparable with every other arm."
    ),
)
