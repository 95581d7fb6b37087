"""Arm i: Projection of both signs."""

from experiments.arms.base import Arm

ARM = Arm(
    name="projected_two_sided",
    letter="i",
    title="Projection of both signs",
    overrides={"projection": "two_sided", "direction": "v_hack", "reward_shaping": "none"},
    tells=(
        "Whether the negative component does the work: this arm removes it as well, so the policy can move neither "
        "towards v_hack nor away from it."
    ),
)
