"""/healthz of each service says 503 when the loop behind it stands still; container engines act on it."""

import time
from types import SimpleNamespace

import httpx
import pytest
from fastapi.testclient import TestClient

from common.metrics import Metrics, serve
from common.queue import Queue, connect
from common.settings import RefServerSettings, SandboxSettings, build
from services.ref_server import app
from services.sandbox import worker as worker_module
from services.sandbox.worker import Worker


@pytest.fixture
def ref_server(redis_url):
    settings = build(RefServerSettings, {"model": "unused"})
    queue = Queue(connect(redis_url), "gen-0")
    policy = SimpleNamespace(turned_at=time.monotonic(), version=7, run_id="r", queue=queue)
    metrics = Metrics("ref_server")
    return policy, TestClient(app.build_app(settings, policy, None, metrics, 100)), queue


def test_a_generator_whose_loop_stands_still_is_unhealthy(ref_server):
    policy, client, _ = ref_server
    assert (client.get("/healthz").status_code, client.get("/healthz").json()["policy_version"]) == (200, 7)
    policy.turned_at -= app.STUCK_S + 1
    answer = client.get("/healthz")
    assert answer.status_code == 503
    assert "has not turned for" in answer.text


def test_a_generator_shows_the_queue_and_who_is_alive(ref_server):
    _, client, queue = ref_server
    queue.client.set("rs:heartbeat:sandbox:a", 1)
    for stream in ("rs:requests", "rs:graded:one", "rs:graded:two"):
        queue.client.xadd(stream, {"m": b"x"})
    queue.client.xgroup_create("rs:graded:two", "trainer", id="0")
    queue.client.xreadgroup("trainer", "t", {"rs:graded:two": ">"})
    text = client.get("/metrics").text
    for line in (
        'rs_stream_depth{stream="requests"} 1.0',
        'rs_stream_depth{stream="rollouts"} 0.0',
        'rs_stream_depth{stream="graded"} 2.0',
        'rs_stream_pending{stream="graded"} 1.0',
        'rs_alive{service="sandbox"} 1.0',
        'rs_alive{service="ref_server"} 0.0',
    ):
        assert line in text, line


def test_a_grader_that_hangs_is_unhealthy(redis_url):
    settings = build(SandboxSettings, {"redis_url": redis_url, "name": "w", "isolation": "best_effort"})
    worker = Worker(settings, Queue(connect(redis_url), "w"), Metrics("sandbox"))
    server = serve(worker.metrics, worker.health, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.server_port}/healthz"
    try:
        assert httpx.get(url).status_code == 200
        worker.active_at -= worker_module.STUCK_S + 1
        assert (httpx.get(url).status_code, httpx.get(url).json()["ok"]) == (503, False)
    finally:
        server.shutdown()
        server.server_close()
        worker.close()
