"""Routes that change what the generator does, behind a token; and the bound on what anybody may send.

    POST /v1/admin/pause      take no more requests (those in work are finished); pushes are still loaded and proven
    POST /v1/admin/resume     go on

The token is in the file that admin_token_file names and is compared in constant time. Without that file the routes
answer 403: nobody administers. Everything else this server answers reads only.
"""

from __future__ import annotations

import hmac
import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.access import read_secret
from common.settings import RefServerSettings
from services.ref_server.served_policy import ServedPolicy

MAX_BODY = 4 << 20


class PauseAnswer(BaseModel):
    paused: bool


def admin_routes(settings: RefServerSettings, policy: ServedPolicy) -> APIRouter:
    """The routes. ConfigError when admin_token_file names a file that holds no secret."""
    token = None if settings.admin_token_file is None else read_secret(settings.admin_token_file, "admin_token_file")

    def admin(authorization: Annotated[str, Header()] = "") -> None:
        if token is None:
            raise HTTPException(
                403, "this server has no admin token: start it with admin_token_file (ADMIN_TOKEN_FILE)"
            )
        if not hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "send the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    refusals: dict[int | str, dict[str, Any]] = {
        401: {"description": "no token, or another one"},
        403: {"description": "the server has no admin token"},
    }
    router = APIRouter(prefix="/v1/admin", dependencies=[Depends(admin)], responses=refusals)

    @router.post("/pause")
    def pause() -> PauseAnswer:
        policy.paused.set()
        return PauseAnswer(paused=True)

    @router.post("/resume")
    def resume() -> PauseAnswer:
        policy.paused.clear()
        return PauseAnswer(paused=False)

    return router


class BodyLimit:
    """ASGI middleware: a request body above MAX_BODY bytes is answered with 413 and never held in memory."""

    def __init__(self, app: ASGIApp, limit: int = MAX_BODY):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client is gone
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.limit:
                await _too_large(send, self.limit)
                return
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(parts, None) or await receive()

        await self.app(scope, replay, send)


async def _too_large(send: Send, limit: int) -> None:
    text = json.dumps({"detail": f"the body is larger than {limit} bytes"}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": text})
