"""`python -m services.sandbox COMMAND`: worker, grade, oracle or selftest. Each command has its own --help."""

from __future__ import annotations

import importlib
import sys

from common.errors import UserError

COMMANDS = {
    "worker": ("services.sandbox.worker", "grade rollout groups from the queue until told to stop"),
    "grade": ("services.sandbox.grade_cli", "published grade (labels and reward) of every row of a file"),
    "oracle": ("services.sandbox.oracle_cli", "protected verdict on every row of a file"),
    "selftest": ("services.sandbox.selftest", "try the walls of the jail and print each as present or absent"),
}


def usage() -> str:
    """The command list."""
    lines = [f"  {name:<10}{what}" for name, (_, what) in COMMANDS.items()]
    return "usage: python -m services.sandbox COMMAND [--help]\n\n" + "\n".join(lines)


def main(argv: list[str]) -> int:
    """Dispatch; returns the exit code. User errors are one line on stderr and 2."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"error: unknown command {argv[0]!r}: choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:]) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
