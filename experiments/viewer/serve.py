"""python -m experiments view: browse, filter and search every completion of the runs in a browser.

The index of the run files is kept in RUNS/.viewer/index.sqlite and brought up to date while the page is open: a training
run that is still going can be watched. Deleting it costs nothing but the time to make it again. docs/viewer.md says more.
"""

from __future__ import annotations

import socket
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common import cli
from common.errors import ConfigError, UserError

if TYPE_CHECKING:
    import uvicorn

    from experiments.viewer.index import Indexer


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments view", description=(__doc__ or "").split(": ", 1)[1])
    p.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="run directories (default: runs)")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1; there is no login)")
    p.add_argument("--port", type=int, default=8800, help="port to listen on (default: 8800)")
    p.add_argument(
        "--index", type=Path, metavar="FILE", help="where the index is kept (default: RUNS/.viewer/index.sqlite)"
    )
    p.add_argument("--refresh", type=float, default=5.0, metavar="S", help="seconds between looks for new rollouts")
    p.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                   help="a further name by which browsers may ask for the page (default: localhost and 127.0.0.1)")  # fmt: skip
    return p


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    if not 0 < options.port < 65536:
        raise ConfigError(f"--port {options.port}: give a number from 1 to 65535")
    if not options.refresh > 0:
        raise ConfigError(f"--refresh {options.refresh}: give seconds above 0")
    import uvicorn

    from experiments.viewer.app import HOSTS, build_app
    from experiments.viewer.index import Indexer

    indexer = Indexer(options.runs, options.index)
    try:
        app = build_app(indexer, (*HOSTS, *options.allow_host))
        config = uvicorn.Config(app, host=options.host, port=options.port, log_level="warning", server_header=False)
        server = uvicorn.Server(config)
        with _socket(config) as listening, scanning(indexer, options.refresh):
            print(f"http://{options.host}:{options.port}/   (Ctrl-C ends it; index: {indexer.path})", flush=True)
            server.run(sockets=[listening])
        app.state.readers.close()
    finally:
        indexer.close()
    return 0


@contextmanager
def _socket(config: uvicorn.Config) -> Iterator[socket.socket]:
    """Bound here, so that a taken port is one line and not a traceback."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((config.host, config.port))
            # now: a browser that follows the printed address waits, and is not refused
            listening.listen(config.backlog)
        except OSError as error:
            raise ConfigError(
                f"--port {config.port}: {config.host}:{config.port} cannot be had ({error.strerror})"
            ) from None
        yield listening


@contextmanager
def scanning(indexer: Indexer, every_s: float) -> Iterator[None]:
    """Scan in a thread, again and again, until the block ends."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            try:
                indexer.scan(stop)
                indexer.progress = replace(indexer.progress, error="")
            except (UserError, sqlite3.Error, OSError) as error:  # shown on the page; the next look may succeed
                indexer.progress = replace(indexer.progress, scanning=False, error=str(error))
                print(f"warning: {error}", file=sys.stderr, flush=True)
            stop.wait(every_s)

    thread = threading.Thread(target=loop, name="index", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10.0)
