"""Arm f: Projection on v_hack from label-shuffled pairs."""

from experiments.arms.base import Arm

ARM = Arm(
    name="shuffled_pairs",
    letter="f",
    title="Projection on v_hack from label-shuffled pairs",
    overrides={
        "projection": "one_sided",
        "direction": "v_hack",
        "reward_shaping": "none",
        "gate": 0.0,
    },
    tells=(
        "A harder control than random_direction: same extraction, same prompts, same completions, but which one is the "
        "hack is drawn by lot. It shares every property of v_hack except its meaning. The gate is open on purpose."
    ),
    direction="shuffled",
)
