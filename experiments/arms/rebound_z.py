"""Arm n: Rebound: standardised score."""

from experiments.arms.base import Arm

ARM = Arm(
    name="rebound_z",
    letter="n",
    title="Rebound: standardised score",
    overrides={
        "projection": "off",
        "direction": "v_hack",
        "reward_shaping": "rebound_z",
        "shaping_alpha": 0.5,
    },
    tells=(
        "Whether the additive Rebound is weak only because the raw cosine hardly varies between rollouts: here the "
        "score is standardised before it is charged. The strongest form of the rival that we know how to run."
    ),
)
