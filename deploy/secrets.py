"""Secret files: one password a Redis user, the admin token, Grafana's password, and Redis's list of users.

Made once; what exists is kept, so the same command completes a folder and renders the files that are derived from
others anew. To change a password, delete its file, run it again and restart Redis and the service that uses it.

The folder is 0700. The files are 0444, because Docker mounts each by itself, with its own mode, into a container whose
user is another one; nobody else on this machine gets through the folder.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from common import acl

RANDOM = (*(f"redis_{user}" for user in acl.USERS), "admin_token", "grafana_admin")


def ensure(folder: Path, redis_addresses: tuple[str, ...] = ("redis:6379",)) -> list[str]:
    """Complete `folder`; returns the names of the files that were new.

    redis_addresses  HOST:PORT under which redis_exporter may be told to find Redis
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    new = [name for name in RANDOM if not (folder / name).exists()]
    for name in new:
        _write(folder / name, secrets.token_urlsafe(32))
    values = {name: (folder / name).read_text().strip() for name in RANDOM}
    digests = {user: acl.digest(values[f"redis_{user}"]) for user in acl.USERS}
    _write(folder / "redis_users.acl", acl.users_file(digests))
    _write(folder / "redis_exporter.json", json.dumps(_exporter(values["redis_monitor"], redis_addresses)))
    return new


def _exporter(password: str, addresses: tuple[str, ...]) -> dict[str, str]:
    """redis_exporter looks its password up by address, with or without the user in it."""
    return {f"redis://{user}{address}": password for address in addresses for user in ("", "monitor@")}


def _write(path: Path, text: str) -> None:
    """All of it or none of it, never readable under another mode than the last one."""
    draft = path.with_name(f".{path.name}.draft")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o444)
    os.replace(draft, path)
