"""What the setting `model` may say, and where such a model lies on this machine. Needs neither torch nor a network.

    a folder                      with config.json and *.safetensors: used where it is
    owner/name, owner/name@REV    a model of the Hugging Face hub: models/name
    FILE.gguf                     models/FILE

The last two are brought there once by `python -m experiments model NAME`, which leaves source.json beside the weights
(what it is, revision, sha256 of each file, licence). Commands that start a run do so themselves; services never do.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import ConfigError

MODELS = Path("models")
RECORD = "source.json"
INDEX = "model.safetensors.index.json"
_HUB = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")
_PART = re.compile(r".*-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class Named:
    """What a name means. folder: where the model lies, or will when it has been brought."""

    kind: Literal["folder", "hub", "gguf"]
    name: str
    folder: Path
    revision: str | None = None


def parse(name: str) -> Named:
    """What `name` means. A folder that exists comes first; what has no form of the others is a folder too."""
    path = Path(name)
    if not path.is_dir():
        if name.endswith(".gguf"):
            return Named("gguf", name, MODELS / path.stem)
        hub = _HUB.fullmatch(name)
        # models/NAME has the form of a hub name and is where ours lie
        if hub is not None and path.parts[0] != str(MODELS):
            return Named("hub", hub[1], MODELS / hub[1].partition("/")[2], hub[2])
    return Named("folder", name, path)


def local(name: str) -> Path:
    """The folder that holds the model. ConfigError, with the command that brings it, when it is not there."""
    found = parse(name)
    if found.kind == "folder":
        if not (found.folder / "config.json").is_file():
            raise ConfigError(
                f"field 'model': {name} has no config.json; give a model folder, a FILE.gguf, or a hub name like Qwen/Qwen3-4B"
            )
    elif not brought(found):
        raise ConfigError(
            f"field 'model': {name} is not on this machine yet; run `python -m experiments model {name}`, or put its folder "
            f"at {found.folder}"
        )
    return found.folder


def brought(named: Named) -> bool:
    """Whether the folder is there and whole. ConfigError when it holds another model, or another revision of it."""
    if not (named.folder / "config.json").is_file():
        return False
    said = record(named.folder)
    if said is None:  # put there by hand
        return True
    given = str(Path(named.name).resolve()) if named.kind == "gguf" else named.name
    if said.get("source") != given:
        if named.kind == "gguf" and not Path(named.name).is_file():
            return True  # the file itself is no longer needed
        raise ConfigError(
            f"field 'model': {named.folder} holds {said.get('source')}, not {given}; bring it elsewhere with `python -m "
            f"experiments model {named.name} --out FOLDER` and give that folder"
        )
    wanted = named.revision
    if wanted and wanted not in (said.get("revision"), said.get("asked")):
        raise ConfigError(
            f"field 'model': {named.folder} holds revision {said.get('revision')}, not {wanted}; bring it elsewhere with "
            f"`python -m experiments model {named.name}@{wanted} --out FOLDER` and give that folder"
        )
    return True


def record(folder: Path) -> dict[str, Any] | None:
    """What source.json in the folder says; None without one."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def weight_files(folder: Path) -> list[Path]:
    """The *.safetensors files of a model folder, all of them there.

    An index that names files of which none is there is stale, and passed over (a re-sharded or merged checkpoint keeps
    its old index). ConfigError, naming the first one missing, when only some of a set are there, or none at all.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        raise ConfigError(
            f"field 'model': {folder} has no config.json and *.safetensors; give a local Hugging Face model folder"
        )
    there = {path.name for path in files}
    for wanted in (_indexed(folder), *_numbered(there)):
        missing = sorted(wanted - there)
        if missing and wanted & there:
            raise ConfigError(
                f"field 'model': {folder} lacks {missing[0]} ({len(missing)} of {len(wanted)} weight files); fetch it again"
            )
    return files


def _indexed(folder: Path) -> set[str]:
    """The files that the folder's index names."""
    try:
        return set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"field 'model': {folder / INDEX} is damaged; fetch it again") from None


def _numbered(names: set[str]) -> list[set[str]]:
    """model-00002-of-00003.safetensors tells of its siblings."""
    sets = {}
    for name in names:
        if part := _PART.fullmatch(name):
            stem, total = name[: part.start(1)], int(part[2])
            sets[stem, total] = {f"{stem}{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)}
    return list(sets.values())
