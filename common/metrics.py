"""Every metric of every service, in one table. `python -m common.metrics` prints it as docs/metrics.md; a test compares
both with what running services export.

Prometheus conventions: base units (seconds, bytes, ratio 0..1), `_total` for counters. Trainer gauges carry the labels
run, arm and seed so that dashboards can compare arms; the step is a gauge, never a label. A label's values come from a
closed set or from the configuration, never from data. A gauge without a value this step is NaN, not its last value.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from common import measurements
from common.errors import ConfigError

RUN = ("run", "arm", "seed")
Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True)
class Metric:
    name: str
    kind: Kind
    labels: tuple[str, ...]
    unit: str
    help: str
    service: Literal["trainer", "ref_server", "sandbox"]
    buckets: tuple[float, ...] = ()


def _trainer(name: str, unit: str, help: str, extra: tuple[str, ...] = (), kind: Kind = "gauge") -> Metric:
    return Metric(f"rs_{name}", kind, RUN + extra, unit, help, "trainer")


def _of_table(name: str) -> Metric:
    """A gauge that shows keys of the trainer's rows, as common/measurements.py says."""
    found = measurements.shown_by(name)
    label, _, value = found[0].label.partition("=")
    told = "; ".join(f"{m.label.partition('=')[2]}: {m.meaning}" for m in found) if value else found[0].meaning
    return Metric(name, "gauge", RUN + ((label,) if label else ()), found[0].unit, told, "trainer")


METRICS: tuple[Metric, ...] = (
    _trainer("step", "steps", "Optimizer steps done"),
    *map(_of_table, measurements.gauges()),
    _trainer("cos_align_module", "cosine", "cos(gradient, v_hack) of one module", ("layer", "part")),
    _trainer("null_steps", "steps", "Consecutive steps with the mean cosine within two null-band deviations of zero"),
    _trainer(
        "hack_rate_recent", "ratio", "Strict hack rate, mean of the last five steps: the preregistered onset rule"
    ),
    _trainer("probe_bound", "nats", "Gap at which the trainer stops, because the generator runs other weights"),
    _trainer("trainer_gpu_bytes", "bytes", "Memory of the trainer's GPU", ("kind",)),
    _trainer("groups_total", "groups", "Groups by outcome", ("outcome",), "counter"),
    _trainer("tokens_total", "tokens", "Completion tokens trained on", (), "counter"),
    Metric("rs_generated_tokens_total", "counter", ("replica",), "tokens", "Completion tokens sampled", "ref_server"),
    Metric("rs_generated_groups_total", "counter", ("replica",), "groups", "Rollout groups produced", "ref_server"),
    Metric(
        "rs_generator_policy_version",
        "gauge",
        ("replica", "run"),
        "version",
        "Policy version this generator runs, of the run it last served",
        "ref_server",
    ),
    Metric(
        "rs_generate_seconds",
        "histogram",
        ("replica",),
        "seconds",
        "Time to sample one batch of groups",
        "ref_server",
        (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120),
    ),
    Metric(
        "rs_reference_seconds",
        "histogram",
        ("replica",),
        "seconds",
        "Time for one batch of reference log-probs",
        "ref_server",
        (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30),
    ),
    Metric(
        "rs_delta_load_seconds",
        "gauge",
        ("replica",),
        "seconds",
        "Time to recompute and load the last delta_S",
        "ref_server",
    ),
    Metric(
        "rs_generator_gpu_bytes", "gauge", ("replica", "kind"), "bytes", "Memory of the generator's GPU", "ref_server"
    ),
    Metric("rs_alive", "gauge", ("service",), "processes", "Processes whose heartbeat is in Redis", "ref_server"),
    Metric("rs_stream_depth", "gauge", ("stream",), "messages", "Backlog of a stream", "ref_server"),
    Metric("rs_stream_pending", "gauge", ("stream",), "messages", "Messages claimed and unfinished", "ref_server"),
    Metric("rs_dead_letters", "gauge", (), "messages", "Messages in the dead-letter stream", "ref_server"),
    Metric("rs_graded_total", "counter", ("worker",), "completions", "Completions graded", "sandbox"),
    Metric(
        "rs_graded_early_total",
        "counter",
        ("worker",),
        "completions",
        "Distinct completions that were graded before their group was sampled",
        "sandbox",
    ),
    Metric("rs_graded_groups_total", "counter", ("worker",), "groups", "Groups graded", "sandbox"),
    Metric(
        "rs_labels_total", "counter", ("worker", "label"), "completions", "Completions by published label", "sandbox"
    ),
    Metric(
        "rs_infra_errors_total",
        "counter",
        ("worker", "cause"),
        "completions",
        "Completions that we failed to grade",
        "sandbox",
    ),
    Metric("rs_kills_total", "counter", ("worker", "cause"), "programs", "Programs ended by a limit", "sandbox"),
    Metric(
        "rs_grade_seconds",
        "histogram",
        ("worker",),
        "seconds",
        "Time to grade one completion",
        "sandbox",
        (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30),
    ),
    Metric(
        "rs_isolation_layer", "gauge", ("worker", "layer"), "present", "1 when the isolation layer is active", "sandbox"
    ),
)

LABEL_VALUES: dict[str, str] = {
    "run": "run_id of the settings",
    "arm": "one of experiments/design/arms.py",
    "seed": "seed of the run",
    "layer": "layer number, two digits; `-` outside the layers",
    "part": "e.g. `mlp.up_proj`; `all` when the model has more modules than are exported one by one (512)",
    "kind": "`rs_hack_rate`: strict, loose; GPU memory: used, total (both of the whole device), reserved (this process)",
    "mode": "one of the evaluation modes",
    "phase": "in the trainer: wait, shape (rewards), train, push, total; elsewhere, overlapping wait: generate, grade",
    "outcome": "trained, zero_variance, dropped, stale, duplicate, refused, asked_again",
    "replica": "name of a ref_server",
    "service": "ref_server, sandbox",
    "stream": "requests, rollouts, graded (of all runs together)",
    "worker": "name of a sandbox worker",
    "label": "the five labels of the published detector",
    "cause": "`rs_infra_errors_total`: SandboxError, ConfigError, other; `rs_kills_total`: timeout, cpu, disk, alarm",
}
"""What each label's values are: all of them bounded."""

GROUP_OUTCOMES = ("trained", "zero_variance", "dropped", "stale", "duplicate", "refused", "asked_again")
INFRA_CAUSES = ("SandboxError", "ConfigError", "other")
KILL_CAUSES = ("timeout", "cpu", "disk", "alarm")

_KINDS: dict[Kind, Callable[..., Gauge | Counter | Histogram]] = {
    "gauge": Gauge,
    "counter": Counter,
    "histogram": Histogram,
}


class Metrics:
    """The metrics of one service, in a registry of its own. `metrics["rs_step"]` is the prometheus_client object."""

    def __init__(self, service: str):
        # not the global one: tests and the golden run hold several services in one process
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # process_resident_memory_bytes, process_cpu_seconds_total, ...
        self._by_name = {m.name: self._make(m) for m in METRICS if m.service == service}

    def _make(self, metric: Metric) -> Gauge | Counter | Histogram:
        extra: dict[str, Any] = {"buckets": metric.buckets} if metric.kind == "histogram" else {}
        return _KINDS[metric.kind](
            metric.name, f"{metric.help} [{metric.unit}]", metric.labels, registry=self.registry, **extra
        )

    def __getitem__(self, name: str) -> Any:  # a Gauge, Counter or Histogram, as the table says
        return self._by_name[name]

    def text(self) -> bytes:
        """Prometheus exposition format."""
        return generate_latest(self.registry)


def document() -> str:
    """docs/metrics.md, made from the table."""
    lines = [
        "# Metrics",
        "",
        "Generated by `python -m common.metrics > docs/metrics.md`. Each service answers at `/metrics` and `/healthz`; each",
        "also exports the standard `process_*` metrics.",
    ]
    for service in dict.fromkeys(m.service for m in METRICS):
        lines += ["", f"## {service}", "", "| name | kind | labels | unit | |", "|---|---|---|---|---|"]
        for m in METRICS:
            if m.service == service:
                help = m.help.replace("|", "\\|")
                lines.append(f"| `{m.name}` | {m.kind} | {', '.join(m.labels)} | {m.unit} | {help} |")
    lines += measurements.document()
    lines += ["", "## Labels", "", "| label | values |", "|---|---|"]
    lines += [f"| {label} | {values} |" for label, values in LABEL_VALUES.items()]
    return "\n".join(lines) + "\n"


def serve(metrics: Metrics, health: Callable[[], dict[str, Any]], host: str, port: int) -> ThreadingHTTPServer:
    """/metrics and /healthz on a daemon thread; port 0 takes a free one (see `server_port`).

    `health()` returns a JSON-able dict whose field "ok" decides between 200 and 503.
    """
    import json

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, metrics.text())
            elif self.path == "/healthz":
                state = health()
                self._answer(200 if state["ok"] else 503, "application/json", json.dumps(state).encode())
            else:
                self._answer(404, "text/plain", b"only /metrics and /healthz live here\n")

        def _answer(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Scrapes are not news."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise ConfigError(f"port {port} on {host}: {error.strerror}; choose a free port (0 picks one)") from None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    print(document(), end="")
