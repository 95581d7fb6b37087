"""The committed dashboards: generated, in Grafana's schema, and about metrics and ports that exist."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from boards import BOARDS, CONFIG, ROOT, alerts, panels, targets

from common.metrics import METRICS
from deploy.grafana.__main__ import FOLDER, render

SCHEMA = json.loads(Path(__file__).with_name("grafana_schema.json").read_text())
TABLE = {m.name: m for m in METRICS}
ADDED_BY_PROMETHEUS = {"job", "instance", "le"}
EXPRESSIONS = [t.expr for t in targets()] + [rule["expr"] for rule in alerts()]


def complaints(definition, value):
    validator = jsonschema.Draft7Validator({**SCHEMA, "$ref": f"#/definitions/{definition}"})
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in validator.iter_errors(value)]


def test_the_files_are_what_the_code_says():
    assert {p.name: p.read_text() for p in FOLDER.glob("*.json")} == render(), "run `make docs`"
    assert set(BOARDS) == {"experiment", "pipeline", "grading"}


@pytest.mark.parametrize("name", BOARDS)
def test_dashboards_conform_to_grafanas_schema(name):
    assert complaints("dashboard", {"value": BOARDS[name]}) == []
    for panel in panels(name):
        found = {"options": panel["options"]}
        if panel["type"] in ("timeseries", "heatmap"):
            found["custom"] = panel["fieldConfig"]["defaults"].get("custom", {})
        assert complaints(panel["type"], found) == [], panel["title"]


def test_the_schema_notices_a_misspelt_field():
    assert complaints("dashboard", {"value": BOARDS["grading"] | {"refreshh": "5s"}})
    assert complaints("stat", {"options": panels("grading")[0]["options"] | {"colorMode": "loud"}})


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_has_unit_description_and_room(name):
    taken = {}
    assert len({p["title"] for p in panels(name)}) == len(panels(name))
    for panel in panels(name):
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len(panel["description"]) > 10, panel["title"]
        assert panel["targets"], panel["title"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"], "panels overlap"


def test_experiment_chooses_by_arm_seed_and_run():
    variables = {v["name"]: v for v in BOARDS["experiment"]["templating"]["list"]}
    assert list(variables) == ["arm", "seed", "run"]
    assert all(v["multi"] and v["includeAll"] for v in variables.values())
    for panel in panels("experiment"):
        for target in panel["targets"]:
            if "rs_" in target["expr"]:
                assert 'run=~"$run", arm=~"$arm", seed=~"$seed"' in target["expr"], panel["title"]


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_queries_name_metrics_and_labels_of_the_table(expr):
    for name, matchers in re.findall(r"(rs_\w+)(?:\{([^}]*)\})?", expr):
        metric = TABLE.get(name) or TABLE[re.sub(r"_(bucket|sum|count)$", "", name)]
        used = set(re.findall(r"(\w+)\s*=?[=~!]", matchers))
        assert used <= {*metric.labels, *ADDED_BY_PROMETHEUS}, name


def test_every_metric_is_looked_at():
    shown = {name for expr in EXPRESSIONS for name in re.findall(r"rs_\w+", expr)}
    assert {n for n in TABLE if not shown & {n, f"{n}_bucket"}} == set()


def test_grafana_finds_its_source_and_prometheus_its_targets():
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ][0]
    config = yaml.safe_load(CONFIG.read_text())
    used = {p["datasource"]["uid"] for name in BOARDS for p in panels(name)}
    assert used == {source["uid"]}
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    assert source["url"] == "$PROMETHEUS_URL"
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert "PROMETHEUS_URL" in compose["grafana"]["environment"]
    mounts = " ".join(compose["grafana"]["volumes"])
    provider = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/rankspace.yml").read_text())["providers"][
        0
    ]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts


def test_scraped_ports_are_those_that_the_services_open(everything):
    aliases = {}
    for name, service in everything["services"].items():
        for network in service.get("networks", {}).values():
            for alias in (network or {}).get("aliases", []):
                aliases.setdefault(alias, service)
        aliases[name] = service
    for job in yaml.safe_load(CONFIG.read_text())["scrape_configs"]:
        (block,) = job["dns_sd_configs"]
        (host,) = block["names"]
        assert str(block["port"]) in aliases[host]["expose"], host
        assert set(aliases[host]["networks"]) & set(everything["services"]["prometheus"]["networks"]), host
