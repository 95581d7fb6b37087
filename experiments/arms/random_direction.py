"""Arm e: Projection on a random unit vector a module."""

from experiments.arms.base import Arm

ARM = Arm(
    name="random_direction",
    letter="e",
    title="Projection on a random unit vector a module",
    overrides={"projection": "one_sided", "direction": "random", "reward_shaping": "none"},
    tells=(
        "The control that decides whether the direction matters: the same projection with a random unit vector in "
        "every module. If projected does not beat this arm, v_hack did nothing."
    ),
)
