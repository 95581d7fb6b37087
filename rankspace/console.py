"""How `python -m rankspace` reads its arguments and ends: as the project's other command lines do, but on its own.

    0 done   2 something the user can put right (one line, "error:" in red on a terminal)   130 Ctrl-C

NO_COLOR switches colour off, FORCE_COLOR on. Shells complete the commands where argcomplete is installed.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NoReturn

from .errors import RankspaceError

# What no program can put right: no room, no permission, a file system that takes nothing.
OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO})


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and which shells can complete."""

    def error(self, message: str) -> NoReturn:
        sys.exit(fail(f"{message}; `{self.prog} --help` explains"))

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]  # no caller uses the overloads
        if "_ARGCOMPLETE" in os.environ and find_spec("argcomplete") is not None:
            import argcomplete

            argcomplete.autocomplete(self)
        return super().parse_args(args)


def fail(message: str) -> int:
    """One line on stderr; returns 2."""
    forced = os.environ.get("FORCE_COLOR", "0") not in ("", "0")
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    red, plain = ("\033[1;31m", "\033[0m") if (forced or terminal) and not os.environ.get("NO_COLOR") else ("", "")
    print(f"{red}error:{plain} {' '.join(message.split())}", file=sys.stderr)
    return 2


def run(main: Callable[[], None]) -> int:
    """`main`'s exit code: RankspaceError becomes one line and 2, Ctrl-C one line and 130. Files are whole or absent."""
    try:
        main()
    except RankspaceError as error:
        return fail(str(error))
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        return fail(
            f"{error.filename or 'a file'}: {error.strerror}; make room or choose another place, then start again"
        )
    except KeyboardInterrupt:
        again = shlex.join(sys.orig_argv)
        print(f"interrupted; nothing was written but SVDs in --svd-cache; to start again: {again}", file=sys.stderr)
        return 130
    return 0
