"""python -m bench [NAME ...]: speed, as ratios against a named baseline in one run. Without a name: all of them.

grading          the grader against a fresh interpreter per execution
grading_layers   cost of one jailed program, layer by layer
shared_prompt    a forward and backward with each prompt once a group, against once a completion
bases            starting on a filled SVD cache: a thread a core against one
viewer           indexing 100,000 rollouts, and the time of a page over them
loop             seconds a training step by phase: taking turns against one step ahead
"""

from __future__ import annotations

import subprocess
import sys

NAMES = ("grading", "grading_layers", "loop", "shared_prompt", "bases", "viewer")


def main(argv: list[str]) -> int:
    if argv and argv[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    unknown = [name for name in argv if name not in NAMES]
    if unknown:
        print(f"error: no benchmark '{unknown[0]}'; benchmarks: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    codes = []
    for name in argv or NAMES:
        print(f"\n== {name}", flush=True)
        codes.append(subprocess.run([sys.executable, "-m", f"bench.{name}"]).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
