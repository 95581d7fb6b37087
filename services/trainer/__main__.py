"""python -m services.trainer --config FILE [--set field=value ...]: train one run; started again, it resumes."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from common import cli
from common.errors import ConfigError, UserError
from common.model_names import local

if TYPE_CHECKING:
    from pathlib import Path

    import redis

    from common.lock import TrainerLock
    from common.settings import TrainerSettings
    from common.types import Problem
    from rankspace.pairs import TokenizedPair
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
    from common.queue import Queue
    from rankspace import RankspaceError, gpu
    from rankspace.progress import lines
    from services.trainer.policy import Policy
    from services.trainer.progress import Progress
    from services.trainer.publish import Publisher
    from services.trainer.rank_group import RankGroup
    from services.trainer.record import Record, open_run
    from services.trainer.rollouts import Rollouts
    from services.trainer.shaping import Shaper
    from services.trainer.train import Trainer

    train, heldout = _problems(s)
    stop = cli.Stop.on_signals(
        "stopping when this step is done; Ctrl-C again stops at once, back at the last checkpoint"
    )
    metrics = Metrics("trainer")
    try:
        policy = Policy(s, lines("SVD", file=s.run_dir / "progress.log"))
    except RankspaceError as error:
        raise ConfigError(str(error)) from None
    open_run(s)
    ranks, text = RankGroup(policy), Text(s)
    # However often a trainer is restarted, its groups are no poison.
    queue = Queue(client, f"trainer-{s.run_id}", claim_idle_s=3600, max_deliveries=2**31)
    publisher = Publisher(queue, s.run_id, policy.modules, text.probe(heldout), s.probe_bound, s.adapter)
    rollouts = Rollouts(queue, s.run_id, s.group_timeout_s, lambda: _check(stop, lock), publisher.push_again)
    direction = None if policy.direction is None else {"kind": policy.direction.kind, **policy.direction.metadata}
    record = Record(s, metrics, policy.modules, direction)
    record.gauges.watch_gpu(gpu.memory(policy.device))
    server = serve(metrics, lambda: {"ok": not lock.lost.is_set(), "run": s.run_id}, s.metrics_host, s.metrics_port)
    print(f"trainer {s.run_id}: metrics on http://{s.metrics_host}:{server.server_port}/metrics", flush=True)
    with Progress(s) as progress:
        pairs = text.pairs(s.pairs) if s.refresh_every else []
        heldout_pairs = text.pairs(s.pairs, "heldout") if s.pairs else []
        shaper = Shaper(s, policy, text.pairs)
        trainer = Trainer(
            s, ranks, rollouts, publisher, record, shaper, (train, heldout), pairs, stop, progress.show, lock.require,
            heldout_pairs,
        )  # fmt: skip
        try:
            finished = trainer.run()
        except (UserError, RankspaceError) as error:
            with suppress(OSError):  # the disk may be what failed
                record.status("failed", trainer.state.next_step, str(error))
            raise error if isinstance(error, UserError) else ConfigError(str(error)) from None
        finally:
            ranks.shutdown()
            record.close()
    return 0 if finished else _unfinished(trainer, stop)


def _problems(s: TrainerSettings) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on and held-out ones. What cannot be posed in an evaluation mode is refused before torch is loaded."""
    from services.trainer import evaluate
    from tasks.dataset import load_problems
    from tasks.loopholes import posed, used_test_names

    train, heldout = ([posed(p, s.loophole) for p in load_problems(f)] for f in (s.train_problems, s.heldout_problems))
    evaluate.posed(s, heldout, used_test_names(train))
    return train, heldout


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


class Text:
    """The model's tokenizer, for the probe sequence and for pairs."""

    def __init__(self, s: TrainerSettings):
        self.settings = s

    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(local(self.settings.model))

    def probe(self, problems: list[Problem], tokens: int = 64) -> list[int]:
        """The beginning of the first held-out problem with its canonical solution: text the policy is at home in."""
        problem = problems[0]
        text = problem.prompt[-1]["content"] + "\n" + (problem.canonical_solution or "")
        ids: list[int] = self._tokenizer()(text, add_special_tokens=False)["input_ids"][:tokens]
        if len(ids) < 2:
            raise ConfigError(
                f"problem {problem.id}: its prompt has fewer than two tokens, so delivery cannot be proven with it"
            )
        return ids

    def pairs(self, path: Path | None, split: str = "train") -> list[TokenizedPair]:
        """One split of a pairs file, tokenised. Only the split `heldout` may be empty."""
        from rankspace.chat import Chat
        from rankspace.pairs import load_pairs, tokenize_pair

        assert path is not None, "TrainerSettings asks for pairs where an arm needs them"
        tokenizer, chat = self._tokenizer(), Chat(self.settings.chat_template_kwargs, self.settings.chat_date)
        found = load_pairs(path, "train") if split == "train" else [p for p in load_pairs(path) if p.split == split]
        return [tokenize_pair(tokenizer, pair, chat) for pair in found]


if __name__ == "__main__":
    sys.exit(cli.run(lambda: train(settings_from(None))))
