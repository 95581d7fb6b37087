"""The viewer over HTTP: one page, its static files, and seven questions. Read only; every answer about runs is JSON.

    GET /                 the page                        GET /api/rollouts?...   a page of a filtered, sorted, searched list
    GET /static/...       scripts and styles, vendored    GET /api/rollout?run=&group=&index=   one, with everything
    GET /healthz          for probes                      GET /api/facets?...     what can be filtered by, counted
                                                          GET /api/curves?...     hack rate by run and step
                                                          GET /api/beside?problem=&step=      one problem across runs
                                                          GET /api/state          how much is indexed, what was skipped

What the model wrote is hostile. Guards: the page sets it as text only; the Content-Security-Policy forbids inline script,
eval and every other origin, so that markup which slipped through would still do nothing; answers are JSON with
`nosniff`; no path is made from a request; the Host header must name this machine (or --allow-host), so that a page of
another origin cannot read the answers by rebinding its name. Not covered: who can open a connection can read every
rollout; there is no login, hence 127.0.0.1 by default.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles

from experiments.viewer import counts, query, store
from experiments.viewer.detail import detail
from experiments.viewer.index import Indexer
from experiments.viewer.query import Filters, QueryError
from experiments.viewer.rows import printable
from experiments.viewer.tokens import Tokenizers

STATIC = Path(__file__).parent / "static"
HOSTS = ("localhost", "127.0.0.1")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Readers:
    """Connections for reading, one a request at a time; more are opened when more are needed."""

    def __init__(self, path: Path):
        self.path, self.free = path, SimpleQueue[sqlite3.Connection]()

    @contextmanager
    def one(self) -> Iterator[sqlite3.Connection]:
        """A connection whose statements all see the index at one moment."""
        try:
            base = self.free.get_nowait()
        except Empty:
            base = store.open_reader(self.path)
        base.execute("BEGIN")
        try:
            yield base
        finally:
            base.execute("COMMIT")
            self.free.put(base)

    def close(self) -> None:
        while not self.free.empty():
            self.free.get_nowait().close()


class Facets:
    """Counts under the filters asked for lately, kept until the index changes."""

    MOST = 64

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, Any]] = {}
        self._of = -1
        self._lock = threading.Lock()

    def get(self, base: sqlite3.Connection, filters: Filters, changed: int) -> dict[str, Any]:
        key = filters.without("sort", "desc", "offset", "limit").model_dump_json()
        with self._lock:
            if self._of != changed or len(self._kept) > self.MOST:
                self._of, self._kept = changed, {}
            if key not in self._kept:
                self._kept[key] = counts.facets(base, filters)
            return self._kept[key]


def build_app(indexer: Indexer, hosts: tuple[str, ...] = HOSTS) -> FastAPI:
    """All routes over the index of `indexer`; someone else calls its `scan`."""
    app = FastAPI(title="rollout viewer", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.readers = Readers(indexer.path)
    _guards(app, hosts)
    _searches(app, indexer, app.state.readers)
    _one_rollout(app, indexer, app.state.readers)

    @app.get("/")
    def index() -> FileResponse:
        return FileResponse(STATIC / "index.html", media_type="text/html; charset=utf-8")

    @app.get("/healthz")
    def healthz() -> Response:
        return _json(
            {"ok": not indexer.progress.error, "error": indexer.progress.error}, 503 if indexer.progress.error else 200
        )

    app.mount("/static", StaticFiles(directory=STATIC))
    return app


def _searches(app: FastAPI, indexer: Indexer, readers: Readers) -> None:
    """Routes that answer from the index alone."""
    facets = Facets()

    @app.get("/api/state")
    def state() -> Response:
        progress = indexer.progress
        with readers.one() as base:
            health = query.health(base)
        return _json({
            "scanning": progress.scanning, "files_done": progress.files_done, "files_found": progress.files,
            "generation": progress.changed, "error": progress.error, **health,
        })  # fmt: skip

    @app.get("/api/facets")
    def all_facets(filters: Annotated[Filters, Query()]) -> Response:
        with readers.one() as base:
            return _json(facets.get(base, filters, indexer.progress.changed))

    @app.get("/api/curves")
    def curves(filters: Annotated[Filters, Query()]) -> Response:
        with readers.one() as base:
            return _json(counts.curves(base, filters))

    @app.get("/api/beside")
    def beside(problem: query.Name, step: query.Number = 0, purpose: query.Name = "train") -> Response:
        with readers.one() as base:
            return _json(counts.beside(base, problem, purpose, step))

    @app.get("/api/rollouts")
    def rollouts(filters: Annotated[Filters, Query()]) -> Response:
        with readers.one() as base:
            return _json(query.page(base, filters))


def _one_rollout(app: FastAPI, indexer: Indexer, readers: Readers) -> None:
    """The route that reads a run's own file, and keeps its tokenizer."""
    kept = Tokenizers()

    @app.get("/api/rollout")
    def rollout(run: query.Name, group: query.Name, index: query.Number, token_from: query.Number = 0) -> Response:
        with readers.one() as base:
            found = detail(base, indexer.root, kept, run, group, index, token_from)
        if found is None:
            raise HTTPException(
                404, f"no completion {index} of {group!r} in run {run!r}; its file may have been written anew"
            )
        return _json(found)


def _guards(app: FastAPI, hosts: tuple[str, ...]) -> None:
    """Headers on every answer, one line for every refusal."""

    @app.exception_handler(QueryError)
    def bad_search(request: Request, error: QueryError) -> Response:
        return _json({"detail": str(error)}, 400)

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> Response:
        return _json({"detail": error.detail}, error.status_code)

    @app.exception_handler(RequestValidationError)
    def bad_request(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _json({"detail": f"{'.'.join(str(part)[:80] for part in first['loc'][1:])}: {first['msg'][:200]}"}, 422)

    @app.middleware("http")
    async def headers(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        answer = await call(request)
        answer.headers.update(HEADERS)
        return answer

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)


def _json(value: Any, status: int = 200) -> Response:
    """ASCII JSON: whatever text, it can be encoded; a NaN is an error of ours."""
    return Response(json.dumps(printable(value), allow_nan=False), status, media_type="application/json")
