"""python -m services.trainer --config FILE [--set field=value ...]: train one run; started again, it resumes."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from common import cli
from common.errors import ConfigError, UserError

if TYPE_CHECKING:
    import redis

    from common.lock import TrainerLock
    from common.settings import TrainerSettings
    from services.trainer.train import Trainer


def parser() -> cli.Parser:
    p = cli.Parser(
        prog="python -m services.trainer",
        description="GRPO on delta_S. Needs a running ref_server and at least one sandbox worker on the same Redis.",
        epilog="Exit codes: 0 finished, 1 stopped by its alarm, 2 a user error (one line says which), 3 stopped by SIGTERM, 130 "
        "by Ctrl-C; both resume.",
    )
    p.add_argument("--config", help="settings file, JSON or YAML")
    p.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="any field of TrainerSettings")
    return p


def settings_from(argv: list[str] | None) -> TrainerSettings:
    args = parser().parse_args(argv)
    from common.settings import TrainerSettings, build, parse_assignments, read_settings_file

    values = read_settings_file(args.config) if args.config else {}
    return build(TrainerSettings, values | parse_assignments(args.set), "trainer")


def train(s: TrainerSettings) -> int:
    """Check, lock, build, run."""
    from common.access import open_redis, outages_as_user_errors
    from services.trainer import preflight

    rank = int(os.environ.get("RANK", "0"))
    preflight.check(s)
    if rank != 0:
        for number in (signal.SIGTERM, signal.SIGINT):  # rank 0 stops at a step's end and shuts down the others
            signal.signal(number, signal.SIG_IGN)
        from services.trainer.policy import Policy
        from services.trainer.rank_group import worker_loop

        worker_loop(Policy(s))
        return 0
    client = open_redis(s)
    from common.lock import TrainerLock
    from services.trainer.record import full_disk_as_user_error

    with cli.Resumable(), outages_as_user_errors(s.redis_url), full_disk_as_user_error(s.run_dir):
        lock = TrainerLock(client, s.run_id)
        try:
            return _train_locked(s, client, lock)
        finally:
            lock.release()


def _train_locked(s: TrainerSettings, client: redis.Redis, lock: TrainerLock) -> int:
    from common.metrics import Metrics, serve
    from rankspace import RankspaceError
    from rankspace.progress import lines
    from services.trainer import wiring
    from services.trainer.policy import Policy
    from services.trainer.progress import Progress

    problems = wiring.read_problems(s)  # what cannot be posed is refused before torch is loaded
    stop = cli.Stop.on_signals(
        "stopping when this step is done; Ctrl-C again stops at once, back at the last checkpoint"
    )
    metrics = Metrics("trainer")
    try:
        policy = Policy(s, lines("SVD", file=s.run_dir / "progress.log"))
    except RankspaceError as error:
        raise ConfigError(str(error)) from None
    progress = Progress(s)
    around = wiring.Around(stop, lambda: _check(stop, lock), lock.require, progress.show)
    trainer = wiring.build(s, client, policy, problems, metrics, around)
    server = serve(metrics, lambda: {"ok": not lock.lost.is_set(), "run": s.run_id}, s.metrics_host, s.metrics_port)
    print(f"trainer {s.run_id}: metrics on http://{s.metrics_host}:{server.server_port}/metrics", flush=True)
    with progress:
        try:
            finished = trainer.run()
        except (UserError, RankspaceError) as error:
            with suppress(OSError):  # the disk may be what failed
                trainer.record.status("failed", trainer.state.next_step, str(error))
            raise error if isinstance(error, UserError) else ConfigError(str(error)) from None
        finally:
            trainer.ranks.shutdown()
            trainer.record.close()
    return 0 if finished else _unfinished(trainer, stop)


def _unfinished(trainer: Trainer, stop: cli.Stop) -> int:
    """Say why the run ended before its last step; the exit code."""
    where = f"stopped after step {trainer.state.next_step} of {trainer.s.steps}"
    if trainer.alarm.stops:
        print(
            f"{trainer.alarm.reason}; {where}; to go on: look at its rollouts, then the same command with --set "
            "go_past_alarm=true",
            flush=True,
        )
        return cli.EXIT_FAILED
    print(f"{where}{_resume()}", flush=True)
    return stop.exit_code(cli.EXIT_STOPPED)


def _resume() -> str:
    """How to go on, unless the command that started us says it. Under torchrun it is torchrun's to be started again."""
    if cli.STARTED_BY in os.environ:
        return ""
    return "; to resume: " + (
        "the same torchrun command" if "TORCHELASTIC_RUN_ID" in os.environ else cli.this_command()
    )


def _check(stop: cli.Stop, lock: TrainerLock) -> None:
    if stop.is_set():
        from services.trainer.train import Stopped

        raise Stopped
    lock.require()


if __name__ == "__main__":
    sys.exit(cli.run(lambda: train(settings_from(None))))
