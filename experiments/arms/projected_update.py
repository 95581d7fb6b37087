"""Arm h: Projection of the applied AdamW update."""

from experiments.arms.base import Arm

ARM = Arm(
    name="projected_update",
    letter="h",
    title="Projection of the applied AdamW update",
    overrides={"projection": "update", "direction": "v_hack", "reward_shaping": "none"},
    tells=(
        "Whether momentum and preconditioning turn a projected gradient back towards v_hack: here the applied update "
        "is projected instead of the gradient."
    ),
)
