"""python -m tasks COMMAND: problems as files.

  fetch   problems of LeetCodeDataset or GSM8K, from the Hub or from a local file   DATASET --out FILE
  check   whether files of problems load; every fault with line, field and fix      FILE...
  pairs   contrastive pairs from a model's own solutions                            --problems F --samples S --set SET
  split   set problems of a file aside as held-out ones                             --problems F --n N --out F --rest F

`python -m tasks COMMAND --help` explains one of them.
"""

from __future__ import annotations

import sys

from common import cli

COMMANDS = {"fetch": "tasks.fetch", "check": "tasks.check", "pairs": "tasks.pair_sets", "split": "tasks.split"}


def main(argv: list[str]) -> int:
    """Dispatch; exit code 0 done, 2 for what the user can put right."""
    return cli.dispatch(__doc__ or "", "python -m tasks", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
