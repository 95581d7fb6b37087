"""Arm c: Gradient projection, norm not restored."""

from experiments.arms.base import Arm

ARM = Arm(
    name="projected_no_rescale",
    letter="c",
    title="Gradient projection, norm not restored",
    overrides={"projection": "no_rescale", "direction": "v_hack", "reward_shaping": "none"},
    tells=("Whether restoring the norm matters: without it, a projected step is also a shorter step."),
)
