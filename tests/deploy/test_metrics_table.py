"""The table of metrics against its document, and against what the three registries export."""

import re
from pathlib import Path

import pytest

from common.metrics import LABEL_VALUES, METRICS, Metrics, document


def test_the_document_is_the_table():
    assert Path("docs/metrics.md").read_text() == document(), "run `make docs`"


def test_names_follow_prometheus_conventions():
    names = [m.name for m in METRICS]
    assert len(set(names)) == len(names)
    for m in METRICS:
        assert re.fullmatch(r"rs_[a-z][a-z_]*", m.name)
        assert m.name.endswith("_total") == (m.kind == "counter"), m.name
        if m.unit in ("seconds", "bytes"):
            assert m.unit in m.name, m.name
        assert "step" not in m.labels, "an endless label"


def test_every_label_is_said_to_be_bounded_and_no_other_is():
    assert {label for m in METRICS for label in m.labels} == set(LABEL_VALUES)


@pytest.mark.parametrize("service", ["trainer", "ref_server", "sandbox"])
def test_a_registry_holds_its_part_of_the_table_and_the_process(service):
    families = {f.name for f in Metrics(service).registry.collect()}
    expected = {m.name.removesuffix("_total") for m in METRICS if m.service == service}
    assert {f for f in families if f.startswith("rs_")} == expected
    assert {"process_resident_memory_bytes", "process_cpu_seconds"} <= families
