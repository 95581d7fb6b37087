"""python -m experiments presets: one line for each preset: name, where it runs, title, model."""

from __future__ import annotations

from experiments.design.presets import PRESETS
from experiments.options import presets as parser


def main(argv: list[str]) -> int:
    parser().parse_args(argv)
    wide = max(map(len, PRESETS))
    for name, preset in PRESETS.items():
        print(f"{name:<{wide}}  {'GPU' if preset.gpu else 'CPU'}  {preset.title} ({preset.values['model']})")
    return 0
