"""Arm r: Projection on the PiSSA adapter with A frozen."""

from experiments.arms.base import Arm

ARM = Arm(
    name="pissa_freeze_a",
    letter="r",
    title="Projection on the PiSSA adapter with A frozen",
    overrides={
        "adapter": "pissa_freeze_a",
        "lr": 3e-3,  # moves W as far a step as 2e-2 does through delta_S: lr · sqrt(out) · ‖A‖ against lr · sqrt(r)
        "projection": "one_sided",
        "direction": "v_hack",
        "reward_shaping": "none",
    },
    tells=("Whether the result hangs on the AntiPaSTO adapter: the fallback adapter keeps a fixed basis too."),
)
