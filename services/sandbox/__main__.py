"""`python -m services.sandbox COMMAND`: worker, grade, oracle, selftest or attack. Each command has its own --help."""

from __future__ import annotations

import sys

from common import cli
from services.sandbox import options

COMMANDS = {
    "worker": ("services.sandbox.worker", "grade rollout groups from the queue until told to stop"),
    "grade": ("services.sandbox.grade_cli", "published grade (labels and reward) of every row of a file"),
    "oracle": ("services.sandbox.oracle_cli", "protected verdict on every row of a file"),
    "selftest": ("services.sandbox.jail.selftest", "try the walls of the jail and print each as present or absent"),
    "attack": ("services.sandbox.attack_cli", "our attack programs against a grader of yours; which of them it pays"),
}
PROG = "python -m services.sandbox"


def usage() -> str:
    """The command list."""
    lines = [f"  {name:<10}{what}" for name, (_, what) in COMMANDS.items()]
    return f"usage: {PROG} COMMAND [--help]\n\n" + "\n".join(lines)


def main(argv: list[str]) -> int:
    """Dispatch; returns the exit code. User errors are one line on stderr and 2."""
    return cli.dispatch(
        usage(), PROG, {name: module for name, (module, _) in COMMANDS.items()}, argv, {"worker": options.worker}
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
