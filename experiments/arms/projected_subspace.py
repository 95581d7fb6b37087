"""Arm k: Projection on the top-k pair subspace."""

from experiments.arms.base import Arm

ARM = Arm(
    name="projected_subspace",
    letter="k",
    title="Projection on the top-k pair subspace",
    overrides={"projection": "subspace", "direction": "v_hack", "reward_shaping": "none"},
    tells=(
        "Whether hacking needs more than one direction: removes the span of the top right singular vectors of the "
        "per-pair gradient differences."
    ),
    direction="subspace",
)
