"""How every command line of ours ends: 0 done, 1 failed, 2 the user can put it right (one line), 130 interrupted."""

from __future__ import annotations

import sys
from collections.abc import Callable

from common.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def fail(message: str) -> int:
    """Print one red line to stderr and return the exit code of a user error."""
    line = " ".join(message.split())
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}error:{plain} {line}", file=sys.stderr)
    return EXIT_USER_ERROR


def run(main: Callable[[], int | None], also: tuple[type[Exception], ...] = ()) -> int:
    """Run `main`; a UserError (or one of `also`) becomes one line and exit code 2."""
    try:
        return main() or 0
    except (UserError, *also) as error:
        return fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
