"""Shared fixtures: a real redis-server for the whole session, emptied before each test that asks for it; the services of
the smoke preset for a module that asks for them."""

import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

# Two cores are shared by many processes here; more threads a process only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import redis
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.ports import free_port
from experiments.launch.stack import redis_server
from tests.stacks import smoke_stack

# A busy machine is no failure, and a failure is one that the next run shows again.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    """Files that may take longest first, so that no worker is left alone with one at the end (`--no-loadscope-reorder`)."""
    limits = defaultdict(set)  # of a file, each once: one that is written for the whole file is no sum over its tests
    for item in items:
        if limit := item.get_closest_marker("timeout"):
            limits[item.path].add(limit.args[0])
    items.sort(key=lambda item: -sum(limits[item.path]))


@pytest.fixture(scope="session")
def redis_process(tmp_path_factory):
    port, data = free_port(), tmp_path_factory.mktemp("redis")
    command = [redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data), "--appendonly", "yes"]
    process = subprocess.Popen([*command, "--save", ""], stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port)
    for _ in range(100):
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait()


@pytest.fixture
def redis_url(redis_process):
    redis.Redis.from_url(redis_process).flushall()
    return redis_process


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A directory for the runs of one module, whose services are `stack`."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def stack(root):
    with smoke_stack(root / "stack") as stack:
        yield stack
