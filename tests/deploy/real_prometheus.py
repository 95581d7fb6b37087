"""A real Prometheus on the project's own configuration, and its HTTP API."""

import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import yaml
from boards import CONFIG

from common.ports import free_port
from experiments.launch.stack import environment

SCRAPE_S = 1
VARIABLES = {"$run": ".*", "$arm": ".*", "$seed": ".*", "$__rate_interval": "20s"}


def binary(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    assert found, f"{name} is missing: run `bash deploy/fetch_prometheus.sh`"
    return found


def resolved(expr: str) -> str:
    """With Grafana's variables filled in."""
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


class Prometheus:
    """Runs in `root` on a copy of deploy/prometheus that scrapes faster; `targets`: job -> addresses."""

    def __init__(self, root: Path, targets: dict[str, list[str]]):
        self.root, self.base, self.started = root, f"http://127.0.0.1:{free_port()}", time.time()
        shutil.copytree(CONFIG.parent, root / "etc", ignore=shutil.ignore_patterns("targets"))
        text = (root / "etc/prometheus.yml").read_text()
        (root / "etc/prometheus.yml").write_text(text.replace("_interval: 5s", f"_interval: {SCRAPE_S}s"))
        (root / "etc/targets").mkdir()
        for job, addresses in targets.items():
            (root / f"etc/targets/{job}.yml").write_text(yaml.safe_dump([{"targets": addresses}]))
        command = [binary("prometheus"), f"--config.file={root}/etc/prometheus.yml", f"--storage.tsdb.path={root}/data"]
        with open(root / "prometheus.log", "wb") as log:
            self.process = subprocess.Popen(
                [*command, f"--web.listen-address={self.base.removeprefix('http://')}"],
                stdout=log, stderr=subprocess.STDOUT, env=environment(),
            )  # fmt: skip

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def api(self, path: str, **params):
        answer = httpx.get(f"{self.base}/api/v1/{path}", params=params, timeout=30).json()
        assert answer["status"] == "success", (params, answer)
        return answer["data"]

    def query(self, expr: str) -> list[dict]:
        return self.api("query", query=resolved(expr))["result"]

    def query_range(self, expr: str, step: float = SCRAPE_S) -> list[dict]:
        """Series over all of this server's life: {"metric": labels, "values": [(unix time, float), ...]}, NaN left out."""
        data = self.api("query_range", query=resolved(expr), start=self.started, end=time.time(), step=step)
        assert data["resultType"] == "matrix"
        found = []
        for series in data["result"]:
            values = [(t, float(v)) for t, v in series["values"] if not math.isnan(float(v))]
            found.append({"metric": series["metric"], "values": values})
        return found

    def wait_for(self, expr: str, limit_s: float, alive=lambda: True) -> list[dict]:
        """Until the query has an answer, while what should bring it about is `alive`."""
        deadline = time.monotonic() + limit_s
        while not (found := self.query(expr)):
            assert time.monotonic() < deadline, f"no answer to {expr} in {limit_s} s"
            assert alive(), f"no answer to {expr}, and none will come"
            time.sleep(0.5)
        return found
