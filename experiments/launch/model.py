"""python -m experiments model NAME: a model of the hub, a GGUF file or a folder, as a local folder ready for runs.

NAME: owner/name or owner/name@REVISION of the Hugging Face hub, FILE.gguf, or a folder. It goes to models/, unless --out
says where; runs that name it find it there. Licence, size and time are told first. Started again it goes on where it was.
"""

from __future__ import annotations

import sys

from experiments.launch.bring import bring, describe
from experiments.options import model as parser


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    print(describe(bring(args.name, args.out, say, args.dtype)))
    return 0
