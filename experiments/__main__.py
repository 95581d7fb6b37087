"""python -m experiments COMMAND: run arms, sweep them, and turn the runs into an answer.

  demo          vanilla and projected on this machine, from nothing to a report
  run           one arm, one seed                 --arm A --seed N --preset P [--set field=value]
  sweep         arms x seeds, resumable
  prepare       model, direction and settings files for services that run elsewhere
  status        a line for every run
  report        HTML, Markdown, figures, LaTeX table
  verdict       every preregistered claim: supported, falsified, inconclusive, not evaluable
  next-preset   the decision branch: did vanilla learn to hack, and what is next

`python -m experiments COMMAND --help` explains one of them.
"""

from __future__ import annotations

import sys
from importlib import import_module

from common import cli

# Imported only when asked for, so that --help answers at once.
COMMANDS = {
    "demo": "experiments.demo",
    "run": "experiments.run",
    "sweep": "experiments.sweep",
    "prepare": "experiments.prepare",
    "status": "experiments.status",
    "report": "experiments.report.build",
    "verdict": "experiments.verdict",
    "next-preset": "experiments.next_preset",
}


def main(argv: list[str]) -> int:
    """Dispatch; exit code 0 done, 2 for what the user can put right."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0 if argv else cli.EXIT_USER_ERROR
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        return cli.fail(f"unknown command '{name}'; commands: {', '.join(COMMANDS)}")
    return cli.run(lambda: import_module(COMMANDS[name]).main(rest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
