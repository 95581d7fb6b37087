"""The dashboards and alert rules as lists of queries."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
BOARDS = {p.stem: json.loads(p.read_text()) for p in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))}
CONFIG = ROOT / "deploy/prometheus/prometheus.yml"
RULES = ROOT / "deploy/prometheus/rules/alerts.yml"
LEGEND = re.compile(r"{{\s*(\w+)\s*}}")


@dataclass(frozen=True)
class Target:
    """One query of one panel."""

    board: str
    panel: str
    expr: str
    legend: str

    @property
    def labels(self) -> set[str]:
        """What the legend names, so what the answer must carry."""
        return set(LEGEND.findall(self.legend))


def panels(board):
    return [p for p in BOARDS[board]["panels"] if p["type"] != "row"]


def targets():
    return [
        Target(board, panel["title"], target["expr"], target.get("legendFormat", ""))
        for board in BOARDS
        for panel in panels(board)
        for target in panel["targets"]
    ]


def alerts():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
