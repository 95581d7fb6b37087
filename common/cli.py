"""How every command line of ours reads its arguments and ends. docs/shell.md has the exit codes and what they promise.

    0 done   1 failed, or the answer is no   2 the user can put it right (one line)   3 stopped   130 Ctrl-C

Colour: red on a terminal; NO_COLOR switches it off everywhere, FORCE_COLOR on (no-color.org, force-color.org).
"""

from __future__ import annotations

import argparse
import ast
import errno
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from common.errors import UserError

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_STOPPED = 3
EXIT_INTERRUPTED = 130
COMPLETING = "_ARGCOMPLETE"  # set by the shell while it asks for completions
SERVICE_GOES_ON = "what it had not finished is taken over by another one, or by itself when it is back"
OURS = frozenset({"bench", "common", "deploy", "experiments", "rankspace", "services", "tasks", "tests"})
STARTED_BY = "RANKSPACE_STARTED_BY"  # set for the children of a command that says itself how to resume
# What no program can put right: no room, no permission, a file system that takes nothing.
OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO})

Makes = Callable[[], "Parser"]


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, whose description keeps its lines, and which shells can complete."""

    def __init__(self, *args: object, **values: object):
        values.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **values)  # type: ignore[arg-type]  # handed through as they came

    def error(self, message: str) -> NoReturn:
        sys.exit(fail(f"{message}; `{self.prog} --help` explains"))

    def parse_args(self, args: Sequence[str] | None = None, namespace: object = None) -> argparse.Namespace:  # type: ignore[override]  # no caller uses the overloads
        answer_shell(self)
        return super().parse_args(args)


def completes(action: argparse.Action, values: Callable[[], Iterable[str]]) -> None:
    """What a shell may offer as the argument of an option, also behind a comma; `values` is called only when it asks."""

    def offers(prefix: str, **_: object) -> list[str]:
        before, comma, _last = prefix.rpartition(",")
        return [before + comma + value for value in values()]

    action.completer = offers  # type: ignore[attr-defined]  # where argcomplete looks for it


def answer_shell(parser: argparse.ArgumentParser) -> None:
    """When a shell asks for completions: answer and exit. Otherwise nothing, and nothing is imported."""
    if COMPLETING in os.environ and find_spec("argcomplete") is not None:
        import argcomplete

        argcomplete.autocomplete(parser)


def dispatch(
    usage: str, prog: str, commands: Mapping[str, str], argv: Sequence[str], parsers: Mapping[str, Makes] | None = None
) -> int:
    """`prog COMMAND ...`: import the command's module only when it is asked for, and call its main(argv).

    commands: name -> module with `main(argv) -> int | None`. parsers: name -> what makes its parser, for modules that are
    slow to import; for the others it is the module's `parser()`. Exit codes as at the top of the file.
    """
    parsers = parsers or {}
    if COMPLETING in os.environ:
        answer_shell(tree(prog, commands, parsers))
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage.strip())
        return 0 if argv else EXIT_USER_ERROR
    name, *rest = argv
    if name not in commands:
        return fail(f"unknown command '{name}'; commands: {', '.join(commands)}")
    if {"-h", "--help"} & set(rest) and name in parsers:
        parsers[name]().parse_args(rest)
    return run(lambda: import_module(commands[name]).main(rest))


def tree(prog: str, commands: Mapping[str, str], parsers: Mapping[str, Makes] | None = None) -> Parser:
    """All commands, with the options of those that stand in the line being completed (their module's `parser()`)."""
    top, line = Parser(prog=prog), os.environ.get("COMP_LINE", "").split()
    choices = top.add_subparsers()
    for name, module in commands.items():
        make = (parsers or {}).get(name) or (import_module(module).parser if module and name in line else None)
        parents = [make()] if make and name in line else []
        choices.add_parser(name, parents=parents, add_help=not parents)
    return top


def coloured(stream: TextIO) -> bool:
    """Whether to write colours to a stream."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def fail(message: str) -> int:
    """Print one line to stderr, "error:" in red, and return the exit code of a user error."""
    red, plain = ("\033[1;31m", "\033[0m") if coloured(sys.stderr) else ("", "")
    print(f"{red}error:{plain} {' '.join(message.split())}", file=sys.stderr)
    return EXIT_USER_ERROR


def run(main: Callable[[], int | None], also: tuple[type[Exception], ...] = ()) -> int:
    """Run `main`; a UserError (or one of `also`) becomes one line and exit code 2, Ctrl-C one line and 130
    (SIGTERM, where it counts as that, 3)."""
    expected: tuple[type[Exception], ...] = (UserError, *also)
    try:
        return main() or 0
    except expected as error:
        return fail(str(error))
    except KeyboardInterrupt as error:
        return interrupted(str(error), EXIT_STOPPED if isinstance(error, Terminated) else EXIT_INTERRUPTED)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package in OURS:
            raise  # a fault of ours, not of the environment
        return fail(
            f"the Python package '{package}' is not installed for {sys.executable}; run `make setup` once, then `source "
            ".venv/bin/activate` in each shell (or write .venv/bin/python for python)"
        )
    except BrokenPipeError:  # `... | head`: whoever read has enough
        # Python flushes stdout once more at exit, and would print a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        where = error.filename or "a file"
        return fail(f"{where}: {error.strerror}; make room or choose another place, then give the same command again")


def interrupted(how_to_go_on: str = "", code: int = EXIT_INTERRUPTED) -> int:
    """The last line after Ctrl-C, unless the command that started us says it; returns `code`."""
    if STARTED_BY not in os.environ:
        print("interrupted" + (f"; {how_to_go_on}" if how_to_go_on else ""), file=sys.stderr)
    return code


def docstring(module: str) -> str:
    """The docstring of a module that is not imported for it."""
    spec = find_spec(module)
    return (spec and spec.origin and ast.get_docstring(ast.parse(Path(spec.origin).read_text()))) or ""


def this_command() -> str:
    """The command line that started this process, to be pasted again."""
    return shlex.join(sys.orig_argv)


class Terminated(KeyboardInterrupt):
    """SIGTERM, where it ends the work as Ctrl-C would."""


class Resumable:
    """`with Resumable():` around work that goes on when the same command is given again; Ctrl-C then says which.

    SIGTERM (a job scheduler's, `timeout`'s) does the same from within, where nobody else listens to it: without that, it
    would end this process at once and leave the work of its children undone.
    """

    def __init__(self, says: str = "to resume"):
        self.says, self.listens = says, False

    def __enter__(self) -> None:
        alone = threading.current_thread() is threading.main_thread()  # signals are handled there and nowhere else
        self.listens = alone and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if self.listens:
            signal.signal(signal.SIGTERM, _terminated)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self.listens:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if isinstance(error, KeyboardInterrupt) and not error.args:
            raise type(error)(f"{self.says}: {this_command()}") from None


def _terminated(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: the first one is being obeyed
    raise Terminated


class Stop(threading.Event):
    """Set by SIGTERM or Ctrl-C, for a loop that ends between two pieces of work; a second Ctrl-C ends it at once."""

    def __init__(self, says: str):
        super().__init__()
        self.says, self.number = says, 0

    @classmethod
    def on_signals(cls, says: str = "stopping; Ctrl-C again ends at once") -> Stop:
        """Listen to both signals from now on. `says` is what the first Ctrl-C answers."""
        stop = cls(says)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop._asked)
        return stop

    def _asked(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            os.write(2, f"\n{self.says}\n".encode())  # print is not safe inside a signal handler
        self.number = self.number or number
        self.set()

    def exit_code(self, otherwise: int) -> int:
        """130 after Ctrl-C, else `otherwise`."""
        return EXIT_INTERRUPTED if self.number == signal.SIGINT else otherwise

    def end(self, promise: str) -> int:
        """The exit code of a service that was told to stop: 0 by SIGTERM; by Ctrl-C 130 and what happens to its work."""
        return interrupted(f"{promise}; to start it again: {this_command()}") if self.exit_code(0) else 0
