"""The direction files that a run needs, extracted where they are not there or were made from other weights or pairs."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from common.errors import ConfigError
from common.model_names import local
from common.settings import TrainerSettings
from experiments.design import arms


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
