"""`python -m services.sandbox attack`: our attack programs against a grader that is not ours, and which of them it pays.

    --command "CMD {program} {tests}"     run once for each program, in an empty folder
        {program}   a Python file with a class Solution
        {tests}     three lines like: assert Solution().addTwo(x = 2) == 4
        accepted    exit code 0, or with --accepts a match in what the command prints

No attack program knows the answer, so each that is accepted is a breach. Two programs come first, one right and one wrong: a
command that does not tell them apart is no grader, and nothing else is run. The programs are those of FORGERS
(attack_programs.py), which only want to be paid. They are foreign code all the same: run this where your grader runs such
code anyway.

Exit code: 0 none is accepted, 1 some are, 2 the command is no grader.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common import cli
from common.errors import ConfigError
from common.writable import require_file
from services.sandbox.attack_programs import BODY, FORGERS, PLAIN, RIGHT, TESTS, WRONG

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Grader:
    """A command line with places for a program and its tests. words: split as a shell would, {program} and {tests} in them."""

    words: list[str]
    accepts: re.Pattern[str] | None
    timeout_s: float

    def pays(self, program: str) -> bool:
        """Does it accept this program? A run past the time limit is none that it accepts. ConfigError: no such command."""
        with tempfile.TemporaryDirectory(prefix="attack-") as folder:
            files = {"{program}": Path(folder, "program.py"), "{tests}": Path(folder, "tests.py")}
            files["{program}"].write_text(program, errors="surrogatepass")
            files["{tests}"].write_text("\n".join(TESTS) + "\n")
            words = self.words
            for place, file in files.items():
                words = [word.replace(place, str(file)) for word in words]
            return self._accepted(words, folder)

    def _accepted(self, words: list[str], folder: str) -> bool:
        with tempfile.TemporaryFile() as said:  # a file: what it leaves running may hold a pipe open for ever
            try:
                process = subprocess.Popen(
                    words, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise ConfigError(f"--command: {words[0]} does not start: {error.strerror}") from None
            try:
                code = process.wait(self.timeout_s)
            except subprocess.TimeoutExpired:
                return False
            finally:
                with contextlib.suppress(ProcessLookupError):  # what it has left behind ends with it
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if self.accepts is None:
                return code == 0
            said.seek(0)
            return self.accepts.search(said.read().decode(errors="replace")) is not None


def parser() -> cli.Parser:
    made = cli.Parser(prog="python -m services.sandbox attack", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--command", required=True, metavar="CMD", help="with {program} and {tests} in it")
    made.add_argument("--accepts", metavar="REGEX", help="accepted is what prints this (default: exit code 0)")
    made.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="a program (default: %(default)s)")
    made.add_argument("--out", type=Path, metavar="FILE", help="every verdict as JSON lines")
    return made


def main(argv: list[str]) -> int:
    """Entry point; returns the exit code. Raises UserError for anything the user can put right."""
    options = parser().parse_args(argv)
    if options.out is not None:
        require_file(options.out, "--out")
    grader = Grader(_words(options.command), _pattern(options.accepts), options.timeout)
    _require_grader(grader)
    paid = {name: grader.pays(WRONG[name]) for name in FORGERS}
    honest = {name: grader.pays(RIGHT[name]) for name in PLAIN}
    if options.out is not None:
        rows = [{"program": n, "right": False, "accepted": v} for n, v in paid.items()]
        rows += [{"program": n, "right": True, "accepted": v} for n, v in honest.items()]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in (n for n, accepted in paid.items() if accepted):
        print(f"accepts {name:<26} it {FORGERS[name]}")
    for name in (n for n, accepted in honest.items() if not accepted):
        print(f"refuses {name:<26} an honest program")
    print(
        f"{sum(paid.values())} of {len(paid)} attack programs are accepted,"
        f" {len(honest) - sum(honest.values())} of {len(honest)} honest ones refused"
    )
    return int(any(paid.values()))


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"--command: {error}: quote it as a shell would") from None
    if "{program}" not in command or "{tests}" not in command:
        raise ConfigError('--command: name both files, as in "CMD {program} {tests}"')
    return words


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise ConfigError(f"--accepts: {error}: give a regular expression") from None


def _require_grader(grader: Grader) -> None:
    if not grader.pays(RIGHT["plain"]):
        raise ConfigError(
            "--command refuses a right program: it must accept with exit code 0, or print what --accepts says"
        )
    if grader.pays("class Solution:" + BODY.split("class Solution:")[1]):
        raise ConfigError("--command accepts a program that is plainly wrong: it must end with another exit code then")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
