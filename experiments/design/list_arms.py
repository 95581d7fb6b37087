"""python -m experiments arms: one line for each arm: name, letter, title, what a comparison with it tells."""

from __future__ import annotations

from experiments.design.arms import ARMS
from experiments.options import arms as parser


def main(argv: list[str]) -> int:
    parser().parse_args(argv)
    wide = max(map(len, ARMS))
    for name, arm in ARMS.items():
        print(f"{name:<{wide}}  {arm.letter}  {arm.title}: {arm.tells}")
    return 0
