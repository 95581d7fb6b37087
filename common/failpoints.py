"""Named places where the fault tests let a process die: exactly between two steps that must not come apart.

Inert unless the environment variable RANKSPACE_FAULT names a place: "checkpoint_done:3" kills this process, as
kill -9 would, when it gets there for the third time.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "RANKSPACE_FAULT"
_PLACE, _, _TIMES = os.environ.get(VARIABLE, "").partition(":")
_left = int(_TIMES or 1)


def reached(place: str) -> None:
    """Die here if the tests have asked for it."""
    global _left
    if not _PLACE or place != _PLACE:
        return
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
