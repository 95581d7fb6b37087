"""python -m services.sandbox worker: grade rollout groups from the queue until told to stop.

    rollouts ── consume ──> groups in flight ──> lanes: one completion each ──> programs at the same time (beside.py)
                                 │      ▲           siblings with the same text are graded once
                                 │      ├── what was graded while the group was sampled is not graded again (siblings.py)
                                 │      └── a slow group's further siblings: idle workers take some
                                 └── when its last sibling is done ── publish ──> graded:{run}

Lanes are shared by all groups in flight, so a lane is idle only when no completion waits, and a group whose sibling loops
for ever holds up nobody else. Any number of workers share the stream, and one with enough in hand takes no more. Grading
is idempotent by group id: a group graded twice (its worker was taken for dead) gives the same verdicts, and the trainer
drops the second. Told to stop (SIGTERM), a worker finishes the groups in hand. What *we* fail to grade has status
infra_error and no reward; it is never a wrong answer.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import Empty, LifoQueue
from typing import Any, get_args

from common import cli, failpoints, keys
from common.access import open_redis, outages_as_user_errors
from common.heartbeat import beat
from common.metrics import INFRA_CAUSES, KILL_CAUSES, Metrics, serve
from common.offers import early_token
from common.queue import Delivery, Queue
from common.settings import SandboxSettings, build, parse_assignments, read_settings_file
from common.types import DroppedGroup, Grade, GradedGroup, Label, Problem, RolloutGroup
from services.sandbox.jail.executor import SandboxError
from services.sandbox.jail.start import jail_starts
from services.sandbox.options import worker as parser
from services.sandbox.siblings import Offers, Round, Taken
from services.sandbox.verdicts.beside import Beside
from services.sandbox.verdicts.grade import infra_error
from services.sandbox.verdicts.graders import grade_completion
from services.sandbox.verdicts.oracle import Oracle

log = logging.getLogger("sandbox")

PROGRAMS_A_LANE = 2  # beside the oracle's: the ground truth and the hint; the other three need a test function
PROGRAMS = 5  # at least: five that sleep for as long as they may take no longer than one, however few lanes there are
LOOK_EVERY_S = 0.1  # an idle worker, for offered completions: a fiftieth of what an endless loop takes
OFFER_AFTER_S = 0.5  # thirty times what an ordinary completion takes: fast groups never touch Redis for their siblings
STUCK_S = 600.0  # longer than the longest completion may take


class Worker:
    """Lanes, the groups in flight, and the loop that feeds them."""

    def __init__(self, settings: SandboxSettings, queue: Queue, metrics: Metrics):
        self.settings, self.queue, self.metrics = settings, queue, metrics
        self.jails: LifoQueue[Oracle] = LifoQueue()  # idle ones; further ones are started when a lane finds none
        self.lanes = lanes = settings.parallel or len(os.sched_getaffinity(0))
        self.waiting, self.running, self._lock = 0, 0, threading.Lock()  # completions in hand: not begun, begun
        self.helping: set[Future[None]] = set()  # completions of groups that nobody or another worker has in hand
        with jail_starts():
            self.jails.put(jail := self._new_jail())
        self.beside = Beside(
            max(PROGRAMS, PROGRAMS_A_LANE * lanes), isolation=settings.isolation, packages=settings.packages
        )
        self.offers = Offers(queue.client)
        self.layers = dict(jail.executor.layers)
        for layer, missing in self.layers.items():
            metrics["rs_isolation_layer"].labels(settings.name, layer).set(not missing)
        self.threads = ThreadPoolExecutor(lanes, thread_name_prefix="completion")
        self.groups = ThreadPoolExecutor(settings.groups_in_flight, thread_name_prefix="group")
        self.in_flight: dict[bytes, Future[None]] = {}
        self.active_at = time.monotonic()
        self._start_counters()

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set; then what is in flight is finished."""
        try:
            while not stop.is_set():
                self.turn()
                self.active_at = time.monotonic()
        finally:
            self.drain()

    def health(self) -> dict[str, Any]:
        """Not ok when neither a turn nor a completion has ended for longer than any may take."""
        quiet_s = round(time.monotonic() - self.active_at, 1)
        return {"ok": quiet_s <= STUCK_S, "worker": self.settings.name, "quiet_s": quiet_s}

    def turn(self, wait_s: float = LOOK_EVERY_S) -> int:
        """Take a group if there is room for it; returns how many were taken. Raises what a group in flight raised.

        There is none while more completions wait than there are lanes: another worker may be idle.
        """
        self._settle(wait_for=None)
        self.beside.executors.reap()
        self._help()
        patience_s = min(wait_s, 0.05) if self.in_flight or self.helping else wait_s
        if len(self.in_flight) >= self.settings.groups_in_flight or self.waiting >= self.lanes:
            self._settle(wait_for=FIRST_COMPLETED, timeout_s=patience_s)
            return 0
        taken = self.queue.consume(keys.ROLLOUTS, keys.GRADERS, (RolloutGroup,), 1, patience_s, self._drop)
        # After an outage of Redis the queue hands a consumer its own unfinished work once more: it is in hand already.
        new = [delivery for delivery in taken if delivery.entry_id not in self.in_flight]
        for delivery in new:
            self._wait(len(_texts(delivery.message)))
            self.in_flight[delivery.entry_id] = self.groups.submit(self._group, delivery)
        return len(new)

    def _help(self) -> None:
        """Take completions that are offered, as long as a lane is idle."""
        while self.waiting + self.running < self.lanes and (offer := self.offers.take()) is not None:
            self._wait(1)
            self.helping.add(self.threads.submit(self._helped, offer))

    def _helped(self, taken: Taken) -> None:
        failpoints.reached("sibling_taken")
        offer = taken.sibling
        self.offers.answer(taken, self._one(offer.problem, offer.text, offer.token))

    def _group(self, delivery: Delivery) -> None:
        with self.queue.renew_lease(keys.GRADERS, [delivery]):
            graded = self._grade(delivery.message)
            failpoints.reached("graded")
            self.queue.publish(keys.graded(graded.group.run_id), graded)
            failpoints.reached("grades_put")
            self.queue.ack(keys.GRADERS, delivery)

    def drain(self) -> None:
        """Wait until nothing is in flight."""
        self._settle(ALL_COMPLETED)

    def _settle(self, wait_for: str | None, timeout_s: float | None = None) -> None:
        """Forget groups that are done, after waiting for some (`wait_for` of concurrent.futures.wait). Raises the first
        error among them: the group stays claimed, and is graded by whoever takes it over."""
        if wait_for is not None and self.in_flight:
            wait(self.in_flight.values(), timeout=timeout_s, return_when=wait_for)
        if wait_for == ALL_COMPLETED:
            wait(self.helping)
        done = [self.in_flight.pop(entry) for entry in [e for e, future in self.in_flight.items() if future.done()]]
        helped = {future for future in self.helping if future.done()}
        self.helping -= helped
        for future in [*done, *helped]:
            future.result()

    def grade(self, group: RolloutGroup) -> GradedGroup:
        """Both verdicts on every completion; siblings with the same text are graded once."""
        self._wait(len(_texts(group)))
        return self._grade(group)

    def _grade(self, group: RolloutGroup) -> GradedGroup:
        started, texts = time.perf_counter(), _texts(group)
        round_, ours = Round(self.offers, group.problem, texts), list(range(len(texts)))
        if len(group.completions) > 1:  # a lone one ends with its group, and was not offered
            ours = round_.claim_early(early_token(group.run_id, group.group_id, group.policy_version))
            self._wait(len(ours) - len(texts))
        lanes = {i: self.threads.submit(self._sibling, round_, group.group_id, i) for i in ours}
        if wait(lanes.values(), timeout=OFFER_AFTER_S).not_done:
            round_.offer()
        own = {i: lane.result() for i, lane in lanes.items()} | round_.early
        graded = [self._own(round_, group.group_id, i, own.get(i)) for i in range(len(texts))]
        verdicts = dict(zip(texts, graded, strict=True))
        grades = [verdicts[c.text] for c in group.completions]
        self._count(grades)
        self.metrics["rs_graded_early_total"].labels(self.settings.name).inc(len(round_.early))
        return GradedGroup(group=group, grades=grades, worker=self.settings.name, grade_s=time.perf_counter() - started)

    def _sibling(self, round_: Round, group_id: str, index: int) -> Grade | None:
        """In a lane: the grade of a completion, None where another worker has taken it."""
        if round_.begin(index):
            return self._one(round_.problem, round_.texts[index], group_id)
        self._wait(-1)
        return None

    def _own(self, round_: Round, group_id: str, index: int, grade: Grade | None) -> Grade:
        """`grade`, or what the worker that took the completion answers; ours after all where it does not answer."""
        if grade is None:
            grade = round_.answer(index, self.queue.claim_idle_s)
        if grade is None:
            log.warning("group %s: no answer on completion %d from the worker that took it", group_id, index)
            self._wait(1)
            grade = self.threads.submit(self._one, round_.problem, round_.texts[index], group_id).result()
        return grade

    def _wait(self, more: int) -> None:
        with self._lock:
            self.waiting += more

    def _one(self, problem: Problem, text: str, whose: str) -> Grade:
        with self._lock:
            self.waiting, self.running = self.waiting - 1, self.running + 1
        jail = None
        try:
            with self.beside.place():
                jail = self._jail()
                grade = grade_completion(problem, text, jail, self.beside)
        except Exception as error:  # whatever it is, it is ours: one completion without a grade, not one grader less
            log.error("group %s: %s", whose, error, exc_info=not isinstance(error, SandboxError))
            grade = infra_error(f"{type(error).__name__}: {error}")
            # a jail that failed once is not used again: nobody knows what state it is in
            if jail is not None:
                jail.close()
                jail = None
        finally:
            if jail is not None:
                self.jails.put(jail)
            with self._lock:
                self.running -= 1
        self.active_at = time.monotonic()
        self.metrics["rs_grade_seconds"].labels(self.settings.name).observe(grade.wall_s)
        return grade

    def _jail(self) -> Oracle:
        """An idle jail, or a new one: at most one a lane, and as few as are needed at a time."""
        try:
            return self.jails.get_nowait()
        except Empty:
            return self._new_jail()

    def _new_jail(self) -> Oracle:
        return Oracle(isolation=self.settings.isolation, packages=self.settings.packages)

    def _count(self, grades: Sequence[Grade]) -> None:
        name = self.settings.name
        self.metrics["rs_graded_groups_total"].labels(name).inc()
        self.metrics["rs_graded_total"].labels(name).inc(len(grades))
        for grade in grades:
            if grade.status == "graded":
                self.metrics["rs_labels_total"].labels(name, grade.label).inc()
            else:
                cause = grade.reason.partition(":")[0]
                self.metrics["rs_infra_errors_total"].labels(name, cause if cause in INFRA_CAUSES else "other").inc()
            for cause in grade.evidence.get("kills", ()):
                self.metrics["rs_kills_total"].labels(name, cause).inc()

    def _start_counters(self) -> None:
        """At zero: a counter that appears with its first event hides that event."""
        name = self.settings.name
        for metric, values in (
            ("rs_labels_total", get_args(Label)),
            ("rs_infra_errors_total", INFRA_CAUSES),
            ("rs_kills_total", KILL_CAUSES),
        ):
            for value in values:
                self.metrics[metric].labels(name, value)
        for metric in ("rs_graded_total", "rs_graded_early_total", "rs_graded_groups_total", "rs_grade_seconds"):
            self.metrics[metric].labels(name)

    def _drop(self, group: RolloutGroup, reason: str) -> None:
        """Tell the trainer not to wait for a group that kills its graders."""
        notice = DroppedGroup(run_id=group.run_id, group_id=group.group_id, stage="grade", reason=reason)
        self.queue.publish(keys.graded(group.run_id), notice)

    def close(self) -> None:
        self.groups.shutdown()
        self.threads.shutdown()
        self.beside.close()
        while not self.jails.empty():
            self.jails.get().close()


def _texts(group: RolloutGroup) -> list[str]:
    return list(dict.fromkeys(c.text for c in group.completions))


def settings_from(argv: Sequence[str]) -> SandboxSettings:
    args = parser().parse_args(argv)
    values = read_settings_file(args.config) if args.config else {}
    values.setdefault("name", f"grader-{os.uname().nodename}-{os.getpid()}")
    values |= {k: v for k, v in {"name": args.name, "redis_url": args.redis_url}.items() if v is not None}
    if args.require_isolation is not None:
        values["isolation"] = "required" if args.require_isolation else "best_effort"
    return build(SandboxSettings, values | parse_assignments(args.set), "sandbox")


def main(argv: Sequence[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    settings = settings_from(argv)
    queue = Queue(
        open_redis(settings), settings.name, claim_idle_s=settings.claim_idle_s, max_deliveries=settings.max_deliveries
    )
    stop = cli.Stop.on_signals("stopping when the groups in work are done; Ctrl-C again stops at once")
    metrics = Metrics("sandbox")
    worker = Worker(settings, queue, metrics)
    server = serve(metrics, worker.health, settings.host, settings.port)
    heart = threading.Thread(target=beat, args=(queue.client, "sandbox", settings.name, stop), daemon=True)
    heart.start()
    for layer, missing in worker.layers.items():
        print(f"isolation: {layer} {'absent: ' + missing if missing else 'present'}")
    print(f"sandbox {settings.name} ready; metrics on http://{settings.host}:{server.server_port}/metrics", flush=True)
    try:
        with outages_as_user_errors(settings.redis_url):
            worker.run(stop)
    finally:
        stop.set()
        worker.close()
        heart.join()
    return stop.end(cli.SERVICE_GOES_ON)


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
