"""The ref_server's HTTP door against anything that can be sent through it: real app, real reference model, real Redis.

Requests are made by schemathesis from the server's own OpenAPI, valid and broken; no answer may be a 5xx, and every
answer is one that the OpenAPI names.
"""

import contextlib
import socket
import threading
import time
from types import SimpleNamespace

import httpx
import pytest
import schemathesis
import uvicorn
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from common.access import connect
from common.errors import ConfigError
from common.metrics import Metrics
from common.ports import free_port
from common.queue import Queue
from common.settings import RefServerSettings, build
from experiments.design.presets import ORGANISM_MODEL
from services.ref_server import __main__ as ref_server_main
from services.ref_server.app import build_app
from services.ref_server.reference import Reference
from services.ref_server.served_policy import ServedPolicy

load_all_checks()
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
JSON = {"content-type": "application/json"}
TOKEN = "correct-horse-battery-staple-0123456789"


@pytest.fixture(scope="module")
def service(redis_process, tmp_path_factory):
    """(base address, app, policy) of a served ref_server without its engine: no HTTP route touches that."""
    token = tmp_path_factory.mktemp("admin") / "token"
    token.write_text(TOKEN + "\n")
    chosen = build(RefServerSettings, {
        "model": ORGANISM_MODEL, "device": "cpu", "redis_url": redis_process, "admin_token_file": str(token), "port": free_port(),
    })  # fmt: skip
    policy = ServedPolicy(None, Queue(connect(redis_process), "gen-0"), chosen, Metrics("ref_server"))
    reference = Reference(chosen)
    app = build_app(chosen, policy, reference, policy.metrics, reference.model.config.vocab_size)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=chosen.port, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{chosen.port}", app, policy
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_request_gets_a_5xx_or_an_undocumented_answer(service, mode):
    schema = schemathesis.openapi.from_asgi("/openapi.json", service[1])
    tried = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def attack(case):
            answer = case.call(headers={"authorization": f"Bearer {TOKEN}"})
            tried.add((case.operation.label, answer.status_code))
            case.validate_response(answer, checks=CHECKS)

        try:
            attack()
        except Unsatisfiable:  # an operation without parameters has no broken form
            assert mode is GenerationMode.NEGATIVE
    assert {label for label, _ in tried} >= {"POST /v1/reference_logprobs"}


@pytest.mark.parametrize("body", [
    b"", b"{", b"\xff\xfe\x00", b"null", b"[]", b"[" * 200_000, b'{"prompt_ids": [1e400], "completion_ids": [1]}',
    b'{"prompt_ids": [NaN], "completion_ids": [1]}', b'{"prompt_ids": ["\\ud800"], "completion_ids": [1]}',
    b'{"prompt_ids": [1], "completion_ids": [1], "temperature": 0.0000001}', b'{"a": 1' + b', "a": 1' * 50_000 + b"}",
    b'{"prompt_ids": [-1], "completion_ids": [true]}', b'{"prompt_ids": [' + b"9" * 5000 + b'], "completion_ids": [1]}',
], ids=range(13))  # fmt: skip
def test_broken_bodies_are_the_callers_fault(service, body):
    answer = httpx.post(f"{service[0]}/v1/reference_logprobs", content=body, headers=JSON, timeout=30)
    assert 400 <= answer.status_code < 500, answer.text[:300]


def test_a_body_beyond_the_limit_is_not_held_in_memory(service):
    sent = 0

    def endless():
        nonlocal sent
        for _ in range(1000):
            sent += 1 << 20
            yield b" " * (1 << 20)

    with contextlib.suppress(httpx.HTTPError):  # the server may close the connection while we are still sending
        assert httpx.post(f"{service[0]}/v1/reference_logprobs", content=endless(), timeout=30).status_code == 413
    assert sent < 100 << 20
    assert httpx.get(f"{service[0]}/healthz").status_code == 200


def test_a_client_that_sends_half_a_request_holds_up_nobody(service):
    host, port = service[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as half:
        half.sendall(b"POST /v1/reference_logprobs HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert httpx.get(f"{service[0]}/healthz", timeout=5).status_code == 200


@pytest.mark.parametrize("header", [None, "", "Bearer", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}",
                                    "Bearer \xff\xfe"])  # fmt: skip
@pytest.mark.parametrize("route", ["pause", "resume"])
def test_admin_routes_want_the_token(service, header, route):
    base, _, policy = service
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    assert httpx.post(f"{base}/v1/admin/{route}", headers=headers).status_code == 401
    assert not policy.paused.is_set()


def test_with_the_token_the_generator_pauses_and_goes_on(service):
    base, _, policy = service
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert httpx.post(f"{base}/v1/admin/pause", headers=headers).json() == {"paused": True}
    assert policy.paused.is_set()
    assert httpx.post(f"{base}/v1/admin/resume", headers=headers).json() == {"paused": False}
    assert not policy.paused.is_set()


def test_without_a_token_file_nobody_administers(service, redis_process):
    from fastapi.testclient import TestClient

    chosen = build(RefServerSettings, {"model": ORGANISM_MODEL, "redis_url": redis_process})
    client = TestClient(build_app(chosen, service[2], None, Metrics("ref_server"), 10))
    for header in ("Bearer ", "Bearer None", "Bearer null"):
        assert client.post("/v1/admin/pause", headers={"authorization": header}).status_code == 403


def test_every_route_that_changes_something_wants_the_token(service):
    """A new POST, PUT, PATCH or DELETE that is neither under /v1/admin nor known to read only is found here."""
    reads_only = {"/v1/reference_logprobs"}
    paths = service[1].openapi()["paths"]
    changing = {p for p, methods in paths.items() if set(methods) & {"post", "put", "patch", "delete"}} - reads_only
    assert changing == {"/v1/admin/pause", "/v1/admin/resume"}


def test_a_token_file_without_a_token_is_refused(service, tmp_path):
    (tmp_path / "empty").write_text("\n")
    chosen = build(RefServerSettings, {"model": ORGANISM_MODEL, "admin_token_file": str(tmp_path / "empty")})
    with pytest.raises(ConfigError, match="admin_token_file"):
        build_app(chosen, service[2], None, Metrics("ref_server"), 10)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # how uvicorn ends where it cannot listen
def test_ready_is_said_once_the_port_answers_and_a_taken_port_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 cannot be listened on"):
            ref_server_main._http(SimpleNamespace(host="127.0.0.1", port=port), FastAPI())
    server = ref_server_main._http(SimpleNamespace(host="127.0.0.1", port=port), FastAPI())
    socket.create_connection(("127.0.0.1", port), timeout=1).close()
    server.should_exit = True
