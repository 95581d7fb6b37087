"""A file that a reader finds whole or not at all, also after a power cut: written beside its place, synced, renamed.

Written elsewhere on purpose: deploy/secrets.py (a mode that must never be wider), tasks/fetch.py (the draft is read back
before it counts), rankspace (imports nothing from here; whole directories in atomic_dir.py).
"""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, content: str | bytes) -> None:
    """Replace `path`, or make it. Text is UTF-8. Raises OSError; the former file then stands as it was."""
    draft = path.with_name(f".{path.name}.draft")
    with open(draft, "wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
