"""The services of the smoke preset, for tests that need them whole."""

from pathlib import Path

from experiments.design import presets
from experiments.launch.stack import Stack


def smoke_stack(root: Path) -> Stack:
    """Started, with two graders. Isolation as the machine allows: what each layer does is tested in tests/sandbox."""
    return Stack.start(root, presets.ORGANISM_MODEL, presets.get("smoke").server, graders=2, isolation="best_effort")
