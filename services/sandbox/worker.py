"""python -m services.sandbox worker: grade rollout groups from the queue until told to stop.

    rollouts ── take ──> siblings in parallel, one jail each ──> two verdicts a completion ── put ──> graded:{run}

Any number of workers share the stream evenly; each takes one group at a time, so a slow group holds up nobody else.
Grading is idempotent by group id: a group graded twice (its worker was taken for dead) gives the same verdicts, and the
trainer drops the second. Told to stop (SIGTERM), a worker finishes the group in hand. What *we* fail to grade has
status infra_error and no reward; it is never a wrong answer.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import get_args

from common import cli, failpoints, keys
from common.access import open_redis, outages_as_user_errors
from common.heartbeat import beat
from common.metrics import INFRA_CAUSES, KILL_CAUSES, Metrics, serve
from common.queue import Queue
from common.settings import SandboxSettings, build, parse_assignments, read_settings_file
from common.types import DroppedGroup, Grade, GradedGroup, Label, RolloutGroup
from services.sandbox.jail.executor import SandboxError
from services.sandbox.options import worker as parser
from services.sandbox.rowfiles import jail_starts
from services.sandbox.verdicts.grade import infra_error
from services.sandbox.verdicts.graders import grade_completion
from services.sandbox.verdicts.oracle import Oracle

log = logging.getLogger("sandbox")

STUCK_S = 600.0  # longer than the longest completion may take


class Worker:
    """`parallel` jails and the loop that feeds them."""

    def __init__(self, settings: SandboxSettings, queue: Queue, metrics: Metrics):
        self.settings, self.queue, self.metrics = settings, queue, metrics
        self.jails: SimpleQueue[Oracle] = SimpleQueue()
        with jail_starts():
            for _ in range(settings.parallel):
                self.jails.put(jail := Oracle(isolation=settings.isolation))
        self.layers = dict(jail.executor.layers)
        for layer, missing in self.layers.items():
            metrics["rs_isolation_layer"].labels(settings.name, layer).set(not missing)
        self.threads = ThreadPoolExecutor(settings.parallel)
        self.active_at = time.monotonic()
        self._start_counters()

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.turn()
            self.active_at = time.monotonic()

    def health(self) -> dict:
        """Not ok when neither a turn nor a completion has ended for longer than any may take."""
        quiet_s = round(time.monotonic() - self.active_at, 1)
        return {"ok": quiet_s <= STUCK_S, "worker": self.settings.name, "quiet_s": quiet_s}

    def turn(self, wait_s: float = 0.5) -> int:
        """Grade one group if there is one; returns how many."""
        deliveries = self.queue.consume(keys.ROLLOUTS, keys.GRADERS, (RolloutGroup,), 1, wait_s, self._drop)
        with self.queue.renew_lease(keys.GRADERS, deliveries):
            for delivery in deliveries:
                graded = self.grade(delivery.message)
                failpoints.reached("graded")
                self.queue.publish(keys.graded(graded.group.run_id), graded)
                failpoints.reached("grades_put")
                self.queue.ack(keys.GRADERS, delivery)
        return len(deliveries)

    def grade(self, group: RolloutGroup) -> GradedGroup:
        """Both verdicts on every completion; siblings with the same text are graded once."""
        started = time.perf_counter()
        texts = list(dict.fromkeys(c.text for c in group.completions))
        verdicts = dict(zip(texts, self.threads.map(lambda text: self._one(group, text), texts), strict=True))
        grades = [verdicts[c.text] for c in group.completions]
        self._count(grades)
        return GradedGroup(group=group, grades=grades, worker=self.settings.name, grade_s=time.perf_counter() - started)

    def _one(self, group: RolloutGroup, text: str) -> Grade:
        jail = self.jails.get()
        try:
            grade = grade_completion(group.problem, text, jail)
        except SandboxError as error:
            log.error("group %s: %s", group.group_id, error)
            grade = infra_error(f"{type(error).__name__}: {error}")
            jail.close()
            jail = Oracle(isolation=self.settings.isolation)
        finally:
            self.jails.put(jail)
        self.active_at = time.monotonic()
        self.metrics["rs_grade_seconds"].labels(self.settings.name).observe(grade.wall_s)
        return grade

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
        for metric in ("rs_graded_total", "rs_graded_groups_total", "rs_grade_seconds"):
            self.metrics[metric].labels(name)

    def _drop(self, group: RolloutGroup, reason: str) -> None:
        """Tell the trainer not to wait for a group that kills its graders."""
        notice = DroppedGroup(run_id=group.run_id, group_id=group.group_id, stage="grade", reason=reason)
        self.queue.publish(keys.graded(group.run_id), notice)

    def close(self) -> None:
        self.threads.shutdown()
        while not self.jails.empty():
            self.jails.get().close()


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
