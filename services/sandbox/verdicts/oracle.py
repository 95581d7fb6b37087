"""The protected oracle: is this program right? Asked without letting the program near the answer.

    tests ──split──> holes ──> job (setup, submission, holes)  ──values──> compare here        (the usual assert)
                └──> residuals ───────────────────────────────────values──> judge job          (sorted(...), abs(...))
                └──> whole test ──> second job ──> no exception?                               (weak)

* The job gets the program and the *calls*. Expected values stay in this process, or go to a judge: a job of another
  fork server that never ran a submission and evaluates only test text, on plain values.
* All calls of a program run in one process, in order, so caches and mutated globals behave as in one interpreter.
* Correct means: compiled, loaded, one right answer per test in order, the end marker, exit code 0, within the limits,
  and nothing after it on the channel. A submission can write to the channel; then it has claimed answers, and they
  have to be right.
* Weak tests (asserts.py) run whole in a second job after all others passed; there the expected values are exposed and
  the verdict says so.

Covers: forged output, early exit, patched builtins, equality and type games, frame and heap walks. Does not cover: a
submission that knows the answers (memorised tests), a wrong test, weak tests.
"""

from __future__ import annotations

import marshal
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from common.errors import ConfigError
from services.sandbox.jail import channel
from services.sandbox.jail.executor import Executor, Limits, Outcome, SandboxError
from services.sandbox.verdicts import names, plans
from services.sandbox.verdicts.comparison import compare
from services.sandbox.verdicts.plans import Check, Plan
from services.sandbox.verdicts.prelude import PRELUDE

MAX_SOURCE_CHARS = 1 << 20
DECODE_CPU_S = 2.0  # reading and comparing all answers of one submission
_PLANS_KEPT = 64


@dataclass(frozen=True)
class Verdict:
    """correct: the verdict. weak: at least one test could not be split (see asserts.py). passed: tests passed before
    the first failure, of `total`. ended: how the submission's job ended (executor.Outcome). compiled: whether the
    program compiled."""

    correct: bool
    reason: str
    weak: bool = False
    passed: int = 0
    total: int = 0
    wall_s: float = 0.0
    ended: str = ""
    compiled: bool = True


class Oracle:
    """One submission at a time; not thread-safe; make several. Arguments go to Executor."""

    def __init__(self, **executor: Any) -> None:
        self._options = executor
        self.executor = Executor(**executor)
        self._judge: Executor | None = None
        self._plans: OrderedDict[tuple[Any, ...], Plan] = OrderedDict()

    def __enter__(self) -> Oracle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.executor.close()
        if self._judge is not None:
            self._judge.close()

    @contextmanager
    def using(self, executor: Executor) -> Iterator[None]:
        """Run submissions in another executor than our own, which may be at work on another program."""
        own, self.executor = self.executor, executor
        try:
            yield
        finally:
            self.executor = own

    def judge(self, items: list[tuple[Any, ...]], setup: bytes, keep_setup: bool) -> Outcome:
        if self._judge is None:
            self._judge = Executor(**self._options)
        return self._judge.run_judge(items, setup, default_limits(len(items)), keep_setup=keep_setup)

    def grade(
        self,
        code: str,
        tests: Sequence[str],
        setup_code: str | None = None,
        method: str = "",
        limits: Limits | None = None,
    ) -> Verdict:
        """Grade one program. setup_code None means prelude.PRELUDE. Raises SandboxError when *we* fail, ConfigError when
        the setup code or a test does, TypeError when an argument is not of its type."""
        if not isinstance(code, str) or not all(isinstance(test, str) for test in tests):
            raise TypeError("code must be a string and tests a list of strings")
        started = time.monotonic()
        plan = self.plan(tuple(tests), PRELUDE if setup_code is None else setup_code, method, code)
        verdict = self._grade(code, plan, limits or default_limits(plan.total))
        return replace(
            verdict,
            weak=plan.weak,
            total=plan.total,
            wall_s=time.monotonic() - started,
            reason=("weak: " if plan.weak else "") + verdict.reason,
        )

    def plan(self, tests: tuple[str, ...], setup: str, method: str, code: str = "") -> Plan:
        """How to grade with these tests. Made once for all programs, and once more for those that bind a name of which the
        tests ask nothing else."""
        plan = self._kept(tests, setup, method, frozenset())
        if plan.unasked:
            defined = names.program_names(code) & plan.unasked
            plan = self._kept(tests, setup, method, defined) if defined else plan
        return plan

    def _kept(self, tests: tuple[str, ...], setup: str, method: str, defined: frozenset[str]) -> Plan:
        key = (tests, setup, method, defined)
        if key not in self._plans:
            self._plans[key] = plans.make_plan(tests, setup, method, self.judge, defined)
            while len(self._plans) > _PLANS_KEPT:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _grade(self, code: str, plan: Plan, limits: Limits) -> Verdict:
        if plan.error:
            raise ConfigError(plan.error)  # the row's fault, whatever the program is
        if not plan.total:
            return Verdict(False, "no tests")
        if not plan.asks:
            return Verdict(False, "no test calls the program")
        if len(code) > MAX_SOURCE_CHARS:
            return Verdict(False, f"source longer than {MAX_SOURCE_CHARS} characters", compiled=False)
        reading = _Reading(plan)
        outcome = self.executor.run_calls(
            code, plan.steps, plan.setup, limits, reading.frame, plan.keep_setup, reading.restart
        )
        if not outcome.frames and outcome.ended != "stopped":
            self._check_setup(plan, limits)
        verdict = reading.verdict(outcome, limits)
        if verdict.correct and reading.later:
            verdict = self._residuals(reading, verdict, plan)
        if verdict.correct and plan.weak_steps:
            steps, keep = plan.weak_steps, plan.keep_setup
            weak = self.executor.run_calls(code, steps, plan.setup, limits, keep_setup=keep)
            whole = [tag for tag, _ in weak.frames] == ["C", "L", "Z"]
            if not (weak.complete and weak.exit_code == 0 and whole):
                return replace(verdict, correct=False, reason=f"a test run beside the program: {explain(weak, limits)}")
        return verdict

    def _check_setup(self, plan: Plan, limits: Limits) -> None:
        """Raises ConfigError when the setup code fails by itself, in a job without the program, which could pretend it."""
        if not plan.setup or self.executor.run_judge([], plan.setup, limits).complete:  # no expected value in it
            return
        alone = self.executor.run_script(marshal.loads(plan.setup), limits)
        words = alone.stderr.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
        raise ConfigError(f"the problem's setup code fails in the jail ({words[:200] or explain(alone, limits)})")

    def _residuals(self, reading: _Reading, verdict: Verdict, plan: Plan) -> Verdict:
        """What the judge says of the answers. An answer that ends it is at fault; the test is where its own part does so
        too (ConfigError), and we are where the judge cannot do anything (SandboxError)."""
        checks = [check for check, _ in reading.later]
        outcome = self.judge([(*check.item, values) for check, values in reading.later], plan.setup, plan.keep_setup)
        answers = [body == b"1" for tag, body in outcome.frames if tag in "JU"][: len(checks)]
        if outcome.complete and len(answers) == len(checks) and all(answers):
            return verdict
        at = min(answers.index(False) if False in answers else len(answers), len(checks) - 1)
        if False in answers:
            reason = "wrong answer"
        else:
            why = explain(outcome, default_limits(len(checks)))
            if not self.judge([], plan.setup, plan.keep_setup).complete:
                raise SandboxError(f"the judge died: {why}")
            if not self.judge([plans.own_part(checks[at])], plan.setup, plan.keep_setup).complete:
                raise ConfigError(f"test {checks[at].test + 1} cannot be judged, whatever the answer: {why}")
            reason = f"its answer ends the judge ({why})"
        return replace(verdict, correct=False, passed=checks[at].test, reason=f"test {checks[at].test + 1}: {reason}")


@dataclass
class _Reading:
    """Reads the frames of one submission as they come; a wrong answer ends the job at once."""

    plan: Plan
    stage: str = "compile"
    at: int = 0  # next check
    values: list[bytes] = field(default_factory=list)  # answers so far of a check with several holes
    later: list[tuple[Check, list[bytes]]] = field(default_factory=list)
    failure: str = ""
    spent: float = 0.0
    ended: bool = False

    def restart(self) -> None:
        """The program is run again: what it said does not count."""
        self.__init__(self.plan)  # type: ignore[misc]

    def frame(self, tag: str, body: bytes) -> bool:
        """False: seen enough."""
        if self.ended:
            self.failure = "data after the end of the results"
        elif tag == "C" and self.stage == "compile":
            self.stage = "load"
        elif tag == "L" and self.stage == "load":
            self.stage = "call"
            self._skip_empty()
        elif tag == "V" and self.stage == "call":
            self._answer(body)
        elif tag == "E":
            self.failure = self._exception(body)
        elif tag == "U" and self.stage == "call":
            self.failure = f"test {self._test() + 1}: {body[:80].decode('ascii', 'replace')}"
        elif tag == "Z" and self.stage == "call":
            self.ended = True
            if self.at != len(self.plan.checks):
                self.failure = "fewer answers than tests"
        else:
            self.failure = "malformed results"
        return not self.failure

    def _test(self) -> int:
        checks = self.plan.checks
        return checks[min(self.at, len(checks) - 1)].test if checks else 0

    def _exception(self, body: bytes) -> str:
        name = body.split(b" ", 1)[-1][:80].decode("ascii", "replace")
        if self.stage == "compile":
            return f"does not compile ({name})"
        return f"failed while loading ({name})" if self.stage == "load" else f"test {self._test() + 1}: raised {name}"

    def _skip_empty(self) -> None:
        while self.at < len(self.plan.checks) and self.plan.checks[self.at].holes == 0:
            self.later.append((self.plan.checks[self.at], []))
            self.at += 1

    def _answer(self, body: bytes) -> None:
        if self.at >= len(self.plan.checks):
            self.failure = "more answers than tests"
            return
        check = self.plan.checks[self.at]
        if check.op is None:
            self.values.append(body)
            if len(self.values) < check.holes:
                return
            self.later.append((check, self.values))
            self.values = []
        else:
            self._compare(check, body)
        if not self.failure:
            self.at += 1
            self._skip_empty()

    def _compare(self, check: Check, body: bytes) -> None:
        before = time.thread_time()
        try:
            value = channel.decode(body, max(0.0, DECODE_CPU_S - self.spent))
            if check.op is None or not compare(check.op, value, check.expected):
                self.failure = f"test {check.test + 1}: wrong answer ({_describe(value)})"
        except channel.ChannelError as error:
            self.failure = f"test {check.test + 1}: {error}"
        self.spent += time.thread_time() - before

    def verdict(self, outcome: Outcome, limits: Limits) -> Verdict:
        passed, compiled = self._test() if self.at < len(self.plan.checks) else self.plan.total, self.stage != "compile"
        if self.failure:
            return Verdict(False, self.failure, passed=passed, ended=outcome.ended, compiled=compiled)
        if not (outcome.complete and outcome.exit_code == 0 and self.ended and self.at == len(self.plan.checks)):
            where = ("while compiling", "while loading")[outcome.step] if outcome.step < 2 else "while answering"
            return Verdict(
                False,
                f"{explain(outcome, limits)} {where}",
                passed=passed,
                ended=outcome.ended,
                compiled=compiled or outcome.step > 0,
            )
        return Verdict(True, f"passed {self.plan.total} tests", passed=self.plan.total, ended=outcome.ended)


def default_limits(tests: int) -> Limits:
    """6 s of its own time without an answer end a program, or 6 CPU seconds in all, with one more for every 20 tests
    beyond ten (the benchmark's slowest canonical solutions take 3 s of CPU for 85 tests). Own time does not count the
    wait for a core, so a busy machine fails nobody; half a second more of it than of CPU ends what sleeps in between."""
    cpu_s = 6 + max(0, tests - 10) // 20
    return Limits(wall_s=cpu_s + 0.5, quiet_s=6.0, cpu_s=cpu_s)


def _describe(value: Any) -> str:
    return (
        value.type_name[:40].encode("ascii", "replace").decode()
        if isinstance(value, (channel.Foreign, channel.Items))
        else type(value).__name__
    )


def explain(outcome: Outcome, limits: Limits) -> str:
    """Why a job that did not finish did not."""
    words = {
        "timeout": f"timed out after {outcome.wall_s:.1f} s",
        "cpu": f"used more than {limits.cpu_s} s of CPU",
        "output": "wrote too much",
        "disk": "filled its scratch directory",
        "server": "took the fork server down",
        "signal": f"killed by signal {outcome.signal}",
    }
    return words.get(outcome.ended, f"ended early (exit code {outcome.exit_code})")
