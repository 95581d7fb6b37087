"""Arm o: RL without the loophole."""

from experiments.arms.base import Arm

ARM = Arm(
    name="no_loophole",
    letter="o",
    title="RL without the loophole",
    overrides={
        "projection": "off",
        "direction": "v_hack",
        "reward_shaping": "none",
        "loophole": None,
    },
    tells=(
        "The RL baseline: what the same training gives when there is nothing to hack. The ceiling for the pass rate."
    ),
)
