"""An exported adapter or checkpoint, with its card, to the Hugging Face Hub or a server that speaks its protocol.

    python -m rankspace push --dir merged --repo me/qwen3-4b-projected
    rankspace.push_to_hub("merged", "me/qwen3-4b-projected")

Only directories that `export` or `save_adapter` wrote are taken, so that what is published names its base model, the hash
of its delta_S and how it was made. Private unless said otherwise. `HF_ENDPOINT` and `HF_TOKEN` mean what they mean to
huggingface_hub.
"""

from __future__ import annotations

import re
from pathlib import Path

from .adapter_io import FILE
from .errors import RankspaceError
from .export import NOTE
from .models import need

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push_to_hub(directory: str | Path, repo: str, private: bool = True, token: str | None = None) -> str:
    """Upload a directory as one commit of the model repository `repo`, made where it is absent; returns its address.

    Args:
        directory: written by `export` (merged or --adapter-only) or `save_adapter`.
        repo: owner/name.
        token: of an account that may write there; None takes HF_TOKEN or the login of `hf auth login`.

    Raises:
        RankspaceError: not such a directory, no such name, not allowed, the server does not answer.
    """
    folder = Path(directory)
    if not folder.is_dir() or not any((folder / mark).is_file() for mark in (NOTE, FILE)):
        raise RankspaceError(
            f"--dir {folder}: no export; give a directory that `python -m rankspace export` or save_adapter wrote"
        )
    if not (folder / "README.md").is_file():
        raise RankspaceError(f"--dir {folder}: its card README.md is gone; export it anew")
    if not REPO.fullmatch(repo):
        raise RankspaceError(f"--repo {repo}: give owner/name")
    need("huggingface_hub", "hub")
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Upload from rankspace", ignore_patterns=[".*"]
        )
    # its own errors, and those of an HTTP library that it has changed from version to version
    except Exception as error:
        raise RankspaceError(f"--repo {repo}: {_reason(error)}") from None
    return str(address)


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the server refuses (HTTP {status}): log in with `hf auth login`, or set HF_TOKEN to one that may write there"
    return f"not uploaded ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
