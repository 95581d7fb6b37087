"""What an arm is: a name for a set of TrainerSettings fields, and what the comparison with it tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Arm:
    """One arm of the experiment. Configuration only: everything else (services, loop, problems, seeds) is shared.

    letter      one character, the label in plots and tables
    overrides   TrainerSettings fields that this arm fixes; nobody may set them by hand (presets.resolve refuses)
    tells       what a reader learns from comparing this arm
    direction   which direction file the run loads: v_hack; v_hack with hack and clean swapped in half of the pairs,
                drawn by the run's seed; or the top-k subspace of the pairs (`kind` of rankspace.direction)
    """

    name: str
    letter: str
    title: str
    overrides: dict[str, Any] = field(hash=False)
    tells: str
    direction: Literal["v_hack", "shuffled", "subspace"] = "v_hack"
