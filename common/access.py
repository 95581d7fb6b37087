"""The one way to open Redis: who logs in, with which secret, and what happens while Redis is away.

    open_redis(settings)   address, user and secret file from a service's settings

A password lives in a file of its own; no address, setting, message or log line ever holds it. While Redis is away
(restarting, loading its append-only file, cut off), commands wait and try again for PATIENCE_S seconds, and `outages`
counts how often that happened: a reply may then be lost, so whoever reads streams looks at its unfinished work again
(queue.py). A connection that was lost between two commands and is made anew unseen counts too: Redis may have restarted
without its last second. A command may thus be carried out twice; every consumer is idempotent by group id.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common.errors import ConfigError, QueueError
from common.settings import RedisSettings

PATIENCE_S = 60.0
PAUSE_S = 0.25
ANSWER_S = 30.0
SECRET_BYTES = 4096
REFUSED = (redis.AuthenticationError, redis.exceptions.AuthorizationError, redis.exceptions.MaxConnectionsError)


class Client(redis.Redis):
    """A Redis client that outlives short outages. Made by `connect`."""

    patience: Patience | None = None

    @property
    def outages(self) -> int:
        """How often a connection was found to be gone."""
        return 0 if self.patience is None else self.patience.outages


class Patience(Retry):
    """Tries a command again until PATIENCE_S have passed, and counts. All connections of a client share one."""

    def __init__(self, seconds: float = PATIENCE_S):
        super().__init__(NoBackoff(), 0)
        self.seconds, self.outages = seconds, 0
        self._made: WeakSet[redis.Connection] = WeakSet()

    def connected(self, connection: redis.Connection) -> None:
        """The handshake of every connection. redis-py renews one that has died while idle without telling anybody."""
        cast(Any, connection).on_connect()  # has no types
        self.outages += connection in self._made
        self._made.add(connection)

    # redis-py copies the retry for each connection; the count of outages must be one
    def __deepcopy__(self, memo: dict[int, Any]) -> Patience:
        return self

    def call_with_retry(
        self,
        do: Callable[[], Any],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> Any:
        """redis-py's contract: call `do`, tell `fail` about each error, raise the last one."""
        deadline, failures = time.monotonic() + self.seconds, 0
        while True:
            try:
                return do()
            except self._supported_errors as error:
                if isinstance(error, REFUSED) or (is_retryable and not is_retryable(error)):
                    raise
                failures += 1
                self.outages += 1
                fail(error, failures) if with_failure_count else fail(error)
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE_S)


def open_redis(settings: RedisSettings, wait_s: float = 3.0) -> Client:
    """The connection that a service's settings name. ConfigError for the secret file, QueueError for the rest."""
    password = (
        None
        if settings.redis_password_file is None
        else read_secret(settings.redis_password_file, "redis_password_file")
    )
    return connect(settings.redis_url, wait_s, settings.redis_username, password)


def connect(url: str, wait_s: float = 3.0, username: str | None = None, password: str | None = None) -> Client:
    """A checked connection. QueueError within `wait_s` seconds, naming the address without its password."""
    who = {k: v for k, v in {"username": username, "password": password}.items() if v is not None}
    try:
        # without patience: a wrong address is to be told within seconds, not after a minute
        probe = redis.Redis.from_url(
            url, socket_connect_timeout=wait_s, socket_timeout=wait_s, retry=Retry(NoBackoff(), 0), **who
        )
        probe.ping()
        probe.close()
        patience = Patience()
        client = cast(  # redis-py declares `from_url` of any subclass as its own class
            Client,
            Client.from_url(
                url,
                socket_connect_timeout=wait_s,
                socket_timeout=ANSWER_S,
                health_check_interval=30,
                retry=patience,
                redis_connect_func=patience.connected,
                **who,
            ),
        )
    except ValueError as error:
        raise QueueError(f"redis_url {shown(url)!r}: {error}; write redis://HOST:PORT/DB") from None
    except (redis.AuthenticationError, redis.exceptions.NoPermissionError):
        raise QueueError(
            f"redis_url {shown(url)}: Redis refuses user {username or 'default'}; set redis_username and "
            "redis_password_file (environment: REDIS_USERNAME, REDIS_PASSWORD_FILE) to those of `make secrets`"
        ) from None
    except redis.ResponseError as error:  # it answers, and refuses: a database number that it lacks
        raise QueueError(f"redis_url {shown(url)}: Redis refuses it ({error}); write redis://HOST:PORT/DB") from None
    except redis.RedisError as error:
        raise QueueError(
            f"redis_url {shown(url)}: no Redis answers there ({type(error).__name__}); start one "
            "(`make up`, or `redis-server --appendonly yes`) or set redis_url to where it runs"
        ) from None
    client.patience = patience
    return client


def raw(reply: bytes | str) -> bytes:
    """A reply that is bytes: no connection of ours decodes its replies, which redis-py's types cannot know."""
    return cast(bytes, reply)


@contextmanager
def outages_as_user_errors(url: str) -> Iterator[None]:
    """Around a service's loop: when Redis stays away, or refuses, the service ends with one line instead of a traceback."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise QueueError(
            f"redis_url {shown(url)}: Redis has not answered for {PATIENCE_S:.0f} s ({type(error).__name__}); "
            "start it and then this service again: work that was claimed is taken up where it was left"
        ) from None
    except redis.ResponseError as error:
        raise QueueError(f"redis_url {shown(url)}: Redis refuses: {error}") from None


def read_secret(path: Path, field: str) -> str:
    """One line of a secret file, without the newline. ConfigError naming the field and the file, never the content."""
    try:
        with open(path, "rb") as file:
            data = file.read(SECRET_BYTES + 1)
        secret = data.decode("ascii").strip()
    except OSError as error:
        raise ConfigError(f"field '{field}': {path}: {error.strerror}; `make secrets` writes secret files") from None
    except UnicodeDecodeError:
        raise ConfigError(f"field '{field}': {path} is no text; `make secrets` writes secret files") from None
    if not secret or len(data) > SECRET_BYTES or any(c.isspace() for c in secret):
        raise ConfigError(f"field '{field}': {path} must hold one secret on one line; `make secrets` writes such files")
    return secret


def shown(url: str) -> str:
    """The address without user and password."""
    head, at, tail = url.rpartition("@")
    return f"{head.split('://')[0]}://***@{tail}" if at else url
