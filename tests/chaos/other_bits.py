"""python -m tests.chaos.other_bits --config FILE: the trainer on hardware whose backward never repeats itself.

Every gradient of delta_S carries relative noise that no second process has, as atomic additions on a GPU leave it: a step
done again after a restart ends in another delta_S than before, under the same version number.
"""

from __future__ import annotations

import sys
from typing import Any

from common import cli
from services.trainer.__main__ import settings_from, train

NOISE = 1e-4  # of each number; a thousand times what fp32 rounds off, so that sampled tokens differ too


def disturb() -> None:
    """Make every Policy of this process a noisy one."""
    import torch

    from services.trainer.policy import Policy

    plain = Policy.__init__

    def noisy(self: Policy, *args: Any, **values: Any) -> None:
        plain(self, *args, **values)
        generator = torch.Generator()
        generator.seed()

        def disturbed(gradient: torch.Tensor) -> torch.Tensor:
            drawn = torch.randn(gradient.shape, generator=generator).to(gradient.device, gradient.dtype)
            return gradient * (1 + NOISE * drawn)

        for parameter in self.adapter.parameters():
            parameter.register_hook(disturbed)

    Policy.__init__ = noisy  # type: ignore[method-assign]


def main() -> int:
    settings = settings_from(None)
    disturb()
    return train(settings)


if __name__ == "__main__":
    sys.exit(cli.run(main))
