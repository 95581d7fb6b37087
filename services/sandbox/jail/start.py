"""When the jail itself fails: one clear line at the start, one second try in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from common.errors import ConfigError
from services.sandbox.jail.executor import Executor, Isolation, SandboxError


def check_jail(isolation: Isolation, packages: Sequence[str] = ()) -> None:
    """Start and stop one executor, so that a missing layer is one clear line instead of a failure of every row."""
    with jail_starts():
        Executor(isolation=isolation, packages=packages).close()


@contextmanager
def jail_starts() -> Iterator[None]:
    """Around the start of executors: a jail that does not come up is a ConfigError."""
    try:
        yield
    except SandboxError as error:
        raise ConfigError(f"the jail does not start: {error}") from error


def twice(job: Callable[[], Any]) -> Any:
    """`job()`, once more when our own jail fails: the executor replaces what broke when it is asked again."""
    try:
        return job()
    except SandboxError:
        return job()
