"""Emptying and measuring the scratch directory of a job that may have left traps in it.

Covers: directories of mode 0, deep nesting (no recursion, one descriptor), odd names, FIFOs, sockets and device nodes
(never opened), symbolic links (never followed: every step is openat with O_NOFOLLOW from the parent's descriptor).
Only called when no process of the job is left. Does not cover: files kept open after unlink while the job still runs
(bounded by RLIMIT_FSIZE times RLIMIT_NOFILE).
"""

from __future__ import annotations

import os
import secrets
import stat

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def empty(top: int) -> None:
    """Remove everything beneath the open directory `top`. Raises OSError when something cannot be removed.

    Depth first without recursion: a directory found inside `here` is moved up to `top` under a fresh name, so that
    paths never grow and one descriptor is enough however deep the nesting. The names are drawn after the job's end: a
    name that the job could foresee would be taken already, and stop the cleaning.
    """
    while True:
        names = os.listdir(top)
        if not names:
            return
        for name in names:
            if _unlink(top, name):
                continue
            here = _enter(top, name)
            try:
                for inner in os.listdir(here):
                    if not _unlink(here, inner):
                        os.chmod(inner, 0o700, dir_fd=here)  # moving a directory needs write permission on it
                        os.rename(inner, f".up-{secrets.token_hex(16)}", src_dir_fd=here, dst_dir_fd=top)
            finally:
                os.close(here)
            os.rmdir(name, dir_fd=top)


def _unlink(directory: int, name: str) -> bool:
    """Remove a non-directory or an empty directory. False for a directory with content."""
    try:
        os.unlink(name, dir_fd=directory)
        return True
    except (IsADirectoryError, PermissionError):
        pass
    try:
        os.rmdir(name, dir_fd=directory)
        return True
    except OSError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            raise
        return False


def _enter(directory: int, name: str) -> int:
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=directory)  # a real directory: the job is dead, nobody can swap it for a link
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
    os.fchmod(fd, 0o700)
    return fd


def too_big(top: int, max_bytes: int, max_files: int) -> bool:
    """Whether the tree holds more than `max_bytes` or `max_files`. Looks at no more than `max_files` entries.

    The job is still running and may change things as we look: what vanishes is skipped, links are not followed.
    """
    total = count = 0
    queue = [os.dup(top)]
    try:
        while queue:
            fd = queue.pop()
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        count += 1
                        try:
                            status = entry.stat(follow_symlinks=False)
                            total += status.st_blocks * 512
                            if stat.S_ISDIR(status.st_mode) and len(queue) < 256:
                                queue.append(os.open(entry.name, _DIRECTORY, dir_fd=fd))
                        except OSError:
                            continue
                        if total > max_bytes or count > max_files:
                            return True
            finally:
                os.close(fd)
    finally:
        for fd in queue:
            os.close(fd)
    return False
