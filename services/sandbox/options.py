"""The options of the worker, apart from its code: --help answers without loading Redis and the jail."""

from __future__ import annotations

import argparse

from common import cli


def worker() -> cli.Parser:
    p = cli.Parser(prog="python -m services.sandbox worker", description="Grade rollout groups from the queue.")
    p.add_argument("--config", help="settings file, JSON or YAML")
    p.add_argument("--name", help="unique name of this worker (default: host and process id)")
    p.add_argument("--redis-url")
    p.add_argument(
        "--require-isolation",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="refuse to start when a layer of the jail is missing (default)",
    )
    p.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="any field of SandboxSettings")
    return p
