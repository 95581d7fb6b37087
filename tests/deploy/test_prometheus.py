"""A real Prometheus scrapes real services in two runs, one of them restarted; every query of ours is put to it.

The pictures of the three dashboards are written to the test's temporary folder (its path is printed).
"""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from boards import BOARDS, CONFIG, LEGEND, RULES, alerts, targets
from draw import draw
from real_prometheus import Prometheus, binary

from common.metrics import METRICS
from common.ports import free_port
from common.settings import TrainerSettings, build, dump
from experiments.design import presets
from experiments.launch.direction import ensure_direction
from experiments.launch.stack import environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

GPU_ONLY = {"rs_trainer_gpu_bytes", "rs_generator_gpu_bytes"}
WATCHED_ONLY = {"rs_alarm_ratio"}  # of a run with alarm_clean; these have none, and alerts_test.yml has its rule
STEPS = {"projected": 8, "vanilla": 5}


@pytest.mark.parametrize("arguments", [("check", "config", CONFIG), ("check", "rules", RULES)])
def test_promtool_accepts(arguments):
    done = subprocess.run([binary("promtool"), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_when_it_should_and_not_when_it_should_not():
    cases = Path(__file__).with_name("alerts_test.yml")
    done = subprocess.run([binary("promtool"), "test", "rules", cases], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    firing = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts:\n", cases.read_text()))
    silent = set(re.findall(r"alertname: (\w+), exp_alerts: \[\]", cases.read_text()))
    assert firing == silent == {rule["alert"] for rule in alerts()}


class Runs:
    """Two trainers, one after the other, each on a port of its own."""

    def __init__(self, root, stack):
        self.root, self.stack = root, stack
        self.ports = {arm: free_port() for arm in STEPS}

    def settings(self, arm) -> TrainerSettings:
        values = presets.resolve("smoke", arm, 0, {}, self.root) | {"svd_cache": str(self.root / "svd")}
        values |= {"steps": STEPS[arm], "metrics_port": self.ports[arm], "run_dir": str(self.root / arm)}
        return build(TrainerSettings, values | self.stack.access("trainer"))

    def start(self, arm) -> subprocess.Popen:
        s = self.settings(arm)
        ensure_direction("smoke", arm, 0, s)
        (self.root / f"{arm}.json").write_text(dump(s))
        command = [sys.executable, "-m", "services.trainer", "--config", str(self.root / f"{arm}.json")]
        with open(self.root / f"{arm}.log", "ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment())

    def finish(self, arm, process, code=0) -> None:
        assert process.wait(timeout=400) == code, (self.root / f"{arm}.log").read_text()[-2000:]


@pytest.fixture(scope="module")
def prometheus(root, stack):
    """With everything that happened in both runs in it."""
    runs = Runs(root, stack)
    graders = [re.search(r"http://([\d.:]+)/metrics", (root / f"stack/sandbox-{i}.log").read_text())[1] for i in (0, 1)]
    trainers = [f"127.0.0.1:{port}" for port in runs.ports.values()]
    (root / "prometheus").mkdir()
    server = Prometheus(
        root / "prometheus",
        {"ref_server": [f"127.0.0.1:{stack.ref_port}"], "sandbox": graders, "trainer": trainers},
    )
    process = None
    try:
        process = runs.start("projected")
        server.wait_for('rs_step{arm="projected"} >= 3', 300, lambda: process.poll() is None)
        for address in (*graders, f"127.0.0.1:{stack.ref_port}", trainers[0]):
            health = httpx.get(f"http://{address}/healthz", timeout=10)
            assert (health.status_code, health.json()["ok"]) == (200, True)
        process.send_signal(signal.SIGTERM)
        runs.finish("projected", process, code=3)
        for arm in STEPS:
            process = runs.start(arm)
            runs.finish(arm, process)
        time.sleep(3)
        yield server
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        server.stop()


def test_what_is_scraped_is_the_table_with_its_labels(prometheus):
    every = prometheus.api(
        "series", **{"match[]": '{__name__=~"rs_.*"}', "start": prometheus.started, "end": time.time()}
    )
    seen = {}
    for labels in every:
        name = labels["__name__"]
        if not name.endswith("_created"):
            seen.setdefault(name, []).append(set(labels) - {"__name__", "job", "instance", "le"})
    parts = {m.name: m for m in METRICS}
    parts |= {f"{m.name}_{part}": m for m in METRICS if m.kind == "histogram" for part in ("bucket", "sum", "count")}
    for name, found in seen.items():
        assert all(labels == set(parts[name].labels) for labels in found), name
    assert {m.name for m in METRICS} - {parts[name].name for name in seen} == GPU_ONLY
    # Cardinality: of the order of the model's modules and the histogram's buckets, in no way of steps or rollouts.
    most = max(seen, key=lambda name: len(seen[name]))
    assert len(seen[most]) <= 64, (most, len(seen[most]))


def test_a_restarted_trainer_goes_on_where_its_metrics_stood(prometheus):
    """Steps only grow, counters never fall, although one process ended in the middle and another took over."""
    select = '{run="smoke-projected-s0"'
    (step,) = prometheus.query_range(f"rs_step{select}}}")
    numbers = [v for _, v in step["values"]]
    assert numbers == sorted(numbers)
    assert numbers[-1] == STEPS["projected"]
    starts = prometheus.query_range('process_start_time_seconds{job="trainer"}')
    assert len({v for s in starts for _, v in s["values"]}) == 3, "two processes of one run, one of the other"
    since = f"[{int(time.time() - prometheus.started) + 60}s]"
    for counter in (f"rs_groups_total{select}}}", f"rs_tokens_total{select}}}"):
        assert all(float(s["value"][1]) == 0 for s in prometheus.query(f"resets({counter}{since})"))
    in_all = prometheus.query(f'sum(max_over_time(rs_groups_total{select}, outcome=~"trained|zero_variance"}}{since}))')
    assert float(in_all[0]["value"][1]) == 4 * STEPS["projected"], "groups_per_step of the preset is 4"


def answered(prometheus, expr, labels):
    """Series with data, each with these labels."""
    series = [s for s in prometheus.query_range(expr) if s["values"]]
    assert series, f"no data: {expr}"
    for one in series:
        assert labels <= set(one["metric"]), (expr, one["metric"])
    return series


@pytest.mark.parametrize("target", targets(), ids=lambda t: f"{t.board}-{t.panel}-{t.legend}")
def test_every_panels_query_answers_with_the_labels_of_its_legend(prometheus, target):
    if any(name in target.expr for name in GPU_ONLY | WATCHED_ONLY):
        assert not any(series["values"] for series in prometheus.query_range(target.expr))
        return
    series = answered(prometheus, target.expr, target.labels)
    names = [tuple(s["metric"][label] for label in LEGEND.findall(target.legend)) for s in series]
    if "{{le}}" not in target.legend:  # the heat map's buckets are of several kinds of numbers
        assert len(set(names)) == len(names), f"curves of the same name: {names}"


@pytest.mark.parametrize("variable", BOARDS["experiment"]["templating"]["list"], ids=lambda v: v["name"])
def test_the_variables_offer_what_there_is(prometheus, variable):
    selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]).groups()
    selector = selector.replace("$arm", ".*").replace("$seed", ".*")
    found = prometheus.api(f"label/{label}/values", **{"match[]": selector, "start": prometheus.started})
    assert (
        found
        == {"arm": ["projected", "vanilla"], "seed": ["0"], "run": ["smoke-projected-s0", "smoke-vanilla-s0"]}[label]
    )


def test_prometheus_evaluates_all_rules_without_error(prometheus):
    rules = [r for group in prometheus.api("rules")["groups"] for r in group["rules"]]
    assert len(rules) == len(alerts())
    assert {(r["name"], r["health"], r.get("lastError", "")) for r in rules} == {(r["name"], "ok", "") for r in rules}


@pytest.mark.parametrize("rule", alerts(), ids=lambda r: f"{r['alert']}-{r['labels'].get('reader', '')}")
def test_every_alert_watches_something_that_is_there(prometheus, rule):
    """The expression without its threshold has data, with the labels that its message names."""
    watched = re.split(r"\s(?:unless|and)\s", rule["expr"])[0]
    watched, thresholds = re.subn(r"\s(>=|==|>)\s[\d.]+$", "", watched.strip())
    watched = watched.replace(" > 0.5 *", " - 0.5 *")
    assert thresholds or "rs_probe_gap" in watched, watched
    prometheus.query(rule["expr"])
    if watched in WATCHED_ONLY:
        assert prometheus.query(watched) == []
        return
    named = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    answered(prometheus, watched, named)


@pytest.mark.parametrize("name", BOARDS)
def test_the_dashboards_can_be_looked_at(prometheus, root, name):
    path = root / f"{name}.png"
    draw(name, prometheus, path)
    assert path.stat().st_size > 50_000
    print(f"look at {path}")


def test_a_killed_grader_is_noticed(prometheus, stack):
    """The alert of a real loss: GraderDown names the grader that is gone and not the other."""
    quiet = {a["labels"]["alertname"] for a in prometheus.api("alerts")["alerts"]}
    assert "GraderDown" not in quiet
    victim = stack.process("sandbox-1")
    address = re.search(r"http://([\d.:]+)/metrics", victim.log.read_text())[1]
    victim.popen.kill()
    found = prometheus.wait_for('ALERTS{alertname="GraderDown", alertstate="firing"}', 90)
    assert [f["metric"]["instance"] for f in found] == [address]
    assert prometheus.wait_for('min_over_time(rs_alive{service="sandbox"}[1m]) == 1', 60)
