"""The HTTP side of the ref_server: health, metrics, which policy is loaded, reference log-probs on request.

Rollouts do not pass here; they go through Redis.
"""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import redis
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field

from common import keys
from common.errors import QueueError
from common.heartbeat import alive
from common.metrics import Metrics
from common.settings import RefServerSettings
from services.ref_server.admin import BodyLimit, admin_routes
from services.ref_server.reference import Reference
from services.ref_server.served_policy import ServedPolicy

STUCK_S = 1800.0  # longer than the longest batch
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "the body is no JSON text"},
    413: {"description": "the body is too large"},
    422: {"description": "ids outside the vocabulary, too long, or not what is asked for"},
}
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=65536)]


class ReferenceRequest(BaseModel):
    """Log-probs of `completion_ids` after `prompt_ids` under the initial policy."""

    model_config = ConfigDict(extra="forbid")

    prompt_ids: TokenIds
    completion_ids: TokenIds
    temperature: float = Field(1.0, gt=0.01, le=10)


class ReferenceAnswer(BaseModel):
    logprobs: list[float]


class PolicyAnswer(BaseModel):
    replica: str
    run_id: str | None
    version: int


def build_app(
    settings: RefServerSettings, policy: ServedPolicy, reference: Reference, metrics: Metrics, vocab: int
) -> FastAPI:
    """All routes; the objects are those of the running service."""
    app = FastAPI(title="ref_server", description="Rollout generation and reference log-probs")
    app.include_router(admin_routes(settings, policy))
    app.add_middleware(BodyLimit)
    app.add_exception_handler(RequestValidationError, _complaint)

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        quiet_s = round(time.monotonic() - policy.turned_at, 1)
        if quiet_s > STUCK_S:
            raise HTTPException(503, f"the generation loop has not turned for {quiet_s:.0f} s")
        return {"ok": True, "replica": settings.replica, "policy_version": policy.version, "quiet_s": quiet_s}

    @app.get("/metrics", response_class=Response)
    def prometheus() -> Response:
        _observe_streams(policy, metrics)
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/policy")
    def current() -> PolicyAnswer:
        return PolicyAnswer(replica=settings.replica, run_id=policy.run_id, version=policy.version)

    @app.post("/v1/reference_logprobs", responses=REFUSALS)
    async def reference_logprobs(request: ReferenceRequest) -> ReferenceAnswer:
        length = len(request.prompt_ids) + len(request.completion_ids)
        if length > settings.max_model_len:
            raise HTTPException(422, f"{length} tokens, this server takes {settings.max_model_len} (max_model_len)")
        if max(request.prompt_ids + request.completion_ids) >= vocab:
            raise HTTPException(422, f"a token id is outside the vocabulary of {vocab}")
        rows = await run_in_threadpool(
            reference.logprobs, [request.prompt_ids], [request.completion_ids], request.temperature
        )
        return ReferenceAnswer(logprobs=rows[0])

    return app


def _complaint(request: Request, error: Exception) -> Response:
    """What is wrong with a request, without repeating it: NaN, infinity and lone surrogates cannot be sent back."""
    assert isinstance(error, RequestValidationError)  # build_app has registered this for no other
    told = [
        {"loc": [str(x)[:80] for x in e["loc"]], "msg": e["msg"][:200], "type": e["type"]} for e in error.errors()[:10]
    ]
    return Response(json.dumps({"detail": told}), 422, media_type="application/json")


def _observe_streams(policy: ServedPolicy, metrics: Metrics) -> None:
    client = policy.queue.client
    try:
        work = {
            "requests": ([keys.REQUESTS], keys.GENERATORS),
            "rollouts": ([keys.ROLLOUTS], keys.GRADERS),
            "graded": (list(client.scan_iter(keys.graded("*"), count=1000)), keys.TRAINERS),
        }
        for name, (streams, group) in work.items():
            metrics["rs_stream_depth"].labels(name).set(sum(client.xlen(s) for s in streams))
            metrics["rs_stream_pending"].labels(name).set(sum(_pending(client, s, group) for s in streams))
        metrics["rs_dead_letters"].set(client.xlen(keys.DEAD))
        for service in ("ref_server", "sandbox"):
            metrics["rs_alive"].labels(service).set(len(alive(client, service)))
    except (redis.RedisError, QueueError) as error:
        raise HTTPException(503, f"Redis does not answer: {type(error).__name__}") from None


def _pending(client: redis.Redis, stream: str | bytes, group: str) -> int:
    """Messages that a consumer has taken and not finished."""
    groups = client.xinfo_groups(stream) if client.exists(stream) else []
    return sum(g["pending"] for g in groups if g["name"] == group.encode())
