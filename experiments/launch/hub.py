"""A model of the Hugging Face hub: what it is and weighs, asked once, and its files, checked against the hub's own digests.

huggingface_hub does the talking (HF_ENDPOINT, HF_TOKEN, proxies) and is asked for one commit, so that files of two revisions
are never mixed. What it raises becomes one line that says what to do.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.model_names import Named

# At the top of the repository only: subfolders hold the same weights in other formats.
WANTED = (
    "*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "vocab.txt", "merges.txt", "spiece.model",
    "LICENSE*", "NOTICE*", "README.md",
)  # fmt: skip
LEFT_OUT = ("consolidated*",)


@dataclass(frozen=True)
class RemoteFile:
    """sha256: of a large file; blob: git's sha1 of a small one."""

    name: str
    size: int
    sha256: str | None
    blob: str | None


@dataclass(frozen=True)
class HubModel:
    """One commit of a model repository."""

    name: str
    commit: str
    licence: str
    files: list[RemoteFile]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def look_up(named: Named) -> HubModel:
    """Commit, licence and files, from the hub. ConfigError: no network, no such model, gated, no safetensors in it."""
    import huggingface_hub

    with hub_errors(named):
        info = huggingface_hub.HfApi().model_info(named.name, revision=named.revision, files_metadata=True)
    files = [_remote(one) for one in info.siblings or [] if _is_wanted(one.rfilename)]
    if not any(file.name.endswith(".safetensors") for file in files):
        ggufs = [one.rfilename for one in info.siblings or [] if one.rfilename.endswith(".gguf")]
        more = f"it has {ggufs[0]}: download that file and give its path" if ggufs else "take another model"
        raise ConfigError(f"{named.name} has no *.safetensors at its top; {more}")
    licence = getattr(info.card_data, "license", None) or _tagged(info.tags or []) or "not stated"
    return HubModel(named.name, str(info.sha), str(licence), files)


def _remote(one: Any) -> RemoteFile:
    return RemoteFile(one.rfilename, int(one.size or 0), one.lfs and one.lfs.sha256, one.blob_id)


def _is_wanted(name: str) -> bool:
    return (
        "/" not in name
        and any(fnmatch.fnmatchcase(name, p) for p in WANTED)
        and not any(fnmatch.fnmatchcase(name, p) for p in LEFT_OUT)
    )


def _tagged(tags: list[str]) -> str | None:
    return next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), None)


def download(model: HubModel, named: Named, folder: Path) -> dict[str, str]:
    """Every file into `folder`; {name: sha256}. What is there whole is not fetched again; a damaged file is, once.

    ConfigError: the network went away (start again to go on), or a file that differs from the hub's digest twice.
    """
    return {file.name: _one(model, named, file, folder) for file in model.files}


def _one(model: HubModel, named: Named, file: RemoteFile, folder: Path) -> str:
    target = folder / file.name
    for _ in range(2):
        if not target.is_file():
            _fetch(model, named, file, target)
        found = digests(target)
        if found[0] == file.sha256 or (file.sha256 is None and file.blob in (None, found[1])):
            return found[0]
        target.unlink()
    raise ConfigError(f"{model.name}: {file.name} came twice with other bytes than the hub states; not used")


def _fetch(model: HubModel, named: Named, file: RemoteFile, target: Path) -> None:
    """Into target.part, from where an earlier start left off; then the name. (hf_hub_download begins a cut file anew.)"""
    import huggingface_hub
    from huggingface_hub.file_download import http_get

    huggingface_hub.utils.disable_progress_bars()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    url = huggingface_hub.hf_hub_url(model.name, file.name, revision=model.commit)
    with hub_errors(named), open(part, "ab") as out:
        if out.tell() > file.size:
            out.truncate(0)
        if out.tell() < file.size:
            headers = huggingface_hub.utils.build_hf_headers()
            http_get(url, out, resume_size=out.tell(), headers=headers, expected_size=file.size)
    part.rename(target)


def digests(path: Path) -> tuple[str, str]:
    """(sha256, git blob sha1) of a file."""
    sha256, blob = hashlib.sha256(), hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while part := file.read(1 << 24):
            sha256.update(part)
            blob.update(part)
    return sha256.hexdigest(), blob.hexdigest()


@contextmanager
def hub_errors(named: Named) -> Iterator[None]:
    """What the hub's library raises, as one line with the way out."""
    from huggingface_hub import constants, errors

    network: type[Exception] = errors.HfHubHTTPError.__bases__[0]  # HTTPError of whichever HTTP library it is built on

    try:
        yield
    except errors.GatedRepoError:
        raise ConfigError(
            f"{named.name} is gated: accept its licence on {constants.ENDPOINT}/{named.name}, then set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise ConfigError(f"{named.name} has no revision {named.revision}") from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(
            f"{constants.ENDPOINT} knows no model {named.name}; check the name (a private one needs HF_TOKEN)"
        ) from None
    except errors.HFValidationError as error:
        raise ConfigError(f"{named.name} is no hub name: {str(error).splitlines()[0]}") from None
    except (network, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the network's
            raise ConfigError(f"{named.folder}: {error.strerror}") from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise ConfigError(
            f"cannot fetch {named.name} from {constants.ENDPOINT} ({reason}); where there is a network run `hf download "
            f"{named.name} --local-dir {named.folder.name}` and bring that folder here as {named.folder}, or start again"
        ) from None
