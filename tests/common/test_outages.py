"""What a process does while Redis is away: commands wait, locks and heartbeats outlive it, the end is one line."""

import logging
import threading
import time

import pytest
import redis

from common import access, heartbeat, keys, lock
from common.access import Patience, connect, outages_as_user_errors
from common.errors import ConfigError, QueueError
from common.lock import TrainerLock


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(access, "PAUSE_S", 0.01)
    monkeypatch.setattr(heartbeat, "PERIOD_S", 0.01)
    monkeypatch.setattr(lock, "PERIOD_S", 0.02)


def failing(times, error):
    """A command that fails so often and then answers."""
    left = [error] * times

    def do():
        if left:
            raise left.pop()
        return "answer"

    return do


def test_a_command_waits_for_redis_and_the_outage_is_counted():
    patience, told = Patience(5.0), []
    assert patience.call_with_retry(failing(3, redis.ConnectionError("gone")), told.append) == "answer"
    assert patience.outages == len(told) == 3


def test_a_connection_lost_while_idle_and_renewed_unseen_is_counted(redis_url):
    client = connect(redis_url)
    client.ping()
    before = client.outages
    connect(redis_url).client_kill_filter(_type="normal", skipme=True)
    client.ping()
    assert (before, client.outages) == (0, 1)


def test_patience_ends_with_the_last_error():
    with pytest.raises(redis.TimeoutError, match="slow"):
        Patience(0.05).call_with_retry(failing(10**6, redis.TimeoutError("slow")), lambda error: None)


@pytest.mark.parametrize(
    ("error", "retryable"),
    [(redis.AuthenticationError("who?"), lambda e: True), (redis.ConnectionError("gone"), lambda e: False)],
)
def test_a_refusal_is_not_waited_out(error, retryable):
    patience = Patience(60.0)
    with pytest.raises(type(error)):
        patience.call_with_retry(failing(1, error), lambda e: None, retryable)
    assert patience.outages == 0


def test_the_number_of_the_failure_is_told_to_who_asks_for_it():
    told = []
    Patience(5.0).call_with_retry(
        failing(2, redis.ConnectionError("gone")), lambda error, n: told.append(n), with_failure_count=True
    )
    assert told == [1, 2]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (redis.ConnectionError("x"), "has not answered for 60 s"),
        (redis.TimeoutError("x"), "has not answered for 60 s"),
        (redis.ResponseError("OOM command not allowed"), "Redis refuses: OOM command not allowed"),
    ],
)
def test_the_end_of_a_service_is_one_line_without_the_password(error, said):
    with pytest.raises(QueueError, match=said) as end, outages_as_user_errors("redis://me:secret@host:1/0"):
        raise error
    assert "secret" not in str(end.value) and "redis://***@host:1/0" in str(end.value)


class Flaky:
    """A client whose next `away` commands of one name find no Redis."""

    def __init__(self, client, name, away):
        self.client, self.name, self.away = client, name, away

    def __getattr__(self, name):
        if name == self.name and self.away:
            self.away -= 1
            raise redis.ConnectionError("gone")
        return getattr(self.client, name)


def until(true, limit=5.0):
    deadline = time.monotonic() + limit
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_heart_beats_on_after_an_outage_and_withdraws_at_the_end(redis_url, caplog):
    client, stop = connect(redis_url), threading.Event()
    with caplog.at_level(logging.WARNING):
        heart = threading.Thread(target=heartbeat.beat, args=(Flaky(client, "set", 2), "sandbox", "g0", stop))
        heart.start()
        until(lambda: heartbeat.alive(client, "sandbox") == ["g0"])
    assert caplog.messages == ["no heartbeat: ConnectionError"] * 2
    stop.set()
    heart.join(5)
    assert heartbeat.alive(client, "sandbox") == []


def test_a_heartbeat_that_cannot_be_withdrawn_says_when_it_expires(redis_url, caplog):
    client, stop = connect(redis_url), threading.Event()
    stop.set()
    heartbeat.beat(Flaky(client, "delete", 1), "sandbox", "g0", stop)
    assert "expires in 15 s" in caplog.text
    assert 0 < client.ttl(keys.heartbeat("sandbox", "g0")) <= 15


def test_a_lock_is_renewed_past_its_expiry_also_across_an_outage(redis_url, monkeypatch):
    monkeypatch.setattr(lock, "EXPIRES_S", 1)
    client = Flaky(connect(redis_url), "pipeline", 0)
    held = TrainerLock(client, "r")
    client.away = 5
    time.sleep(1.2)
    held.require()
    assert client.get(keys.trainer_lock("r")).decode() == held.me and not client.away
    held.release()
    assert client.get(keys.trainer_lock("r")) is None


def test_a_lock_that_another_has_taken_is_lost_for_good_and_not_given_back(redis_url):
    client = connect(redis_url)
    held = TrainerLock(client, "r")
    client.set(keys.trainer_lock("r"), "elsewhere 1 2 3")
    assert held.lost.wait(5)
    client.delete(keys.trainer_lock("r"))
    with pytest.raises(ConfigError, match="another trainer"):
        held.require()
    client.set(keys.trainer_lock("r"), "elsewhere 1 2 3")
    held.release()
    assert client.get(keys.trainer_lock("r")) == b"elsewhere 1 2 3"
