"""The arms, in the order of tables and plots. Each is one small file; `get` finds one by name."""

from __future__ import annotations

from common.errors import ConfigError
from experiments.arms import (
    drift_only,
    ground_truth_penalty,
    ground_truth_screening,
    measure_only,
    no_loophole,
    pissa_freeze_a,
    projected,
    projected_no_rescale,
    projected_refresh,
    projected_subspace,
    projected_two_sided,
    projected_update,
    random_direction,
    rebound,
    rebound_multiplicative,
    rebound_z,
    shuffled_pairs,
    vanilla,
)
from experiments.arms.base import Arm

_MODULES = (
    vanilla, projected, projected_no_rescale, rebound, random_direction, shuffled_pairs, measure_only, projected_update,
    projected_two_sided, drift_only, projected_subspace, projected_refresh, rebound_multiplicative, rebound_z,
    no_loophole, ground_truth_penalty, ground_truth_screening, pissa_freeze_a,
)  # fmt: skip
ARMS: dict[str, Arm] = {module.ARM.name: module.ARM for module in _MODULES}


def get(name: str) -> Arm:
    """The arm of that name; ConfigError listing the names otherwise."""
    try:
        return ARMS[name]
    except KeyError:
        raise ConfigError(f"unknown arm '{name}'; arms: {', '.join(ARMS)}") from None


def order(names: list[str]) -> list[str]:
    """Unique names in the order of the table of arms; names that are no longer arms come last, alphabetically."""
    rank = {name: position for position, name in enumerate(ARMS)}
    return sorted(set(names), key=lambda name: (rank.get(name, len(rank)), name))


__all__ = ["ARMS", "Arm", "get", "order"]
