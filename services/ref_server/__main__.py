"""python -m services.ref_server --model DIR [--set field=value ...]: generate rollouts until stopped."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from common import cli
from common.errors import ConfigError

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from common.queue import Queue
    from common.settings import RefServerSettings


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m services.ref_server", description="Rollouts (vLLM) and reference log-probs.")
    p.add_argument("--config", help="settings file, JSON or YAML")
    p.add_argument("--model", help="base model: folder, or hub name or FILE.gguf that is in models/")
    p.add_argument("--redis-url")
    p.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="any field of RefServerSettings")
    return p


def settings_from(argv: list[str] | None) -> RefServerSettings:
    args = parser().parse_args(argv)
    from common.settings import RefServerSettings, build, parse_assignments, read_settings_file

    values = read_settings_file(args.config) if args.config else {}
    values.setdefault("replica", f"gen-{os.uname().nodename}-{os.getpid()}")
    values |= {k: v for k, v in {"model": args.model, "redis_url": args.redis_url}.items() if v is not None}
    return build(RefServerSettings, values | parse_assignments(args.set), "ref_server")


def serve(settings: RefServerSettings) -> int:
    """Fail fast on what is cheap to check, then load the models, then loop."""
    from common.access import open_redis, outages_as_user_errors
    from common.queue import Queue
    from services.ref_server.engine import Engine, model_path

    model_path(settings.model)
    queue = Queue(
        open_redis(settings),
        settings.replica,
        claim_idle_s=settings.claim_idle_s,
        max_deliveries=settings.max_deliveries,
    )
    stop = cli.Stop.on_signals("stopping when the groups in work are done; Ctrl-C again stops at once")

    from common.metrics import Metrics
    from rankspace import gpu
    from services.ref_server.app import build_app
    from services.ref_server.generation import Generator
    from services.ref_server.reference import Reference
    from services.ref_server.rendering import Renderer
    from services.ref_server.served_policy import ServedPolicy

    metrics = Metrics("ref_server")
    render = Renderer(settings)
    engine = Engine(settings, render.eos_ids())
    reference = Reference(settings)
    for kind, read in gpu.memory(reference.device).items():
        metrics["rs_generator_gpu_bytes"].labels(settings.replica, kind).set_function(read)
    policy = ServedPolicy(engine, queue, settings, metrics)
    server = _http(settings, build_app(settings, policy, reference, metrics, reference.model.config.vocab_size))
    heart = _heartbeat(queue, settings, stop)
    print(f"ref_server {settings.replica} ready on http://{settings.host}:{settings.port}", flush=True)
    try:
        with outages_as_user_errors(settings.redis_url):
            Generator(policy, reference, render, queue, settings, metrics).run(stop)
    finally:
        stop.set()
        heart.join()
        server.should_exit = True
    return stop.end(cli.SERVICE_GOES_ON)


def _http(settings: RefServerSettings, app: FastAPI) -> uvicorn.Server:
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host=settings.host, port=settings.port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    # uvicorn ends its thread without a word to us where it cannot listen, and "ready" must not be said before it does
    while not server.started:
        if not thread.is_alive():
            raise ConfigError(
                f"port {settings.port} of {settings.host} cannot be listened on; give another (--set port=N)"
            )
        time.sleep(0.01)
    return server


def _heartbeat(queue: Queue, settings: RefServerSettings, stop: threading.Event) -> threading.Thread:
    from common.heartbeat import beat

    thread = threading.Thread(target=beat, args=(queue.client, "ref_server", settings.replica, stop), daemon=True)
    thread.start()
    return thread


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    sys.exit(cli.run(lambda: serve(settings_from(None))))
