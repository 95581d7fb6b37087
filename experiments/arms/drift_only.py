"""Arm j: Only the drift away from v_hack."""

from experiments.arms.base import Arm

ARM = Arm(
    name="drift_only",
    letter="j",
    title="Only the drift away from v_hack",
    overrides={"projection": "drift_only", "direction": "v_hack", "reward_shaping": "none"},
    tells=(
        "Whether suppression needs RL at all: what is left of each step is the part that leads away from v_hack, "
        "nothing that solves problems. If this did as well as projected, drifting away from v_hack would be the whole "
        "effect."
    ),
)
