"""One table of quantities: every name used elsewhere is in it, and everything in it is shown where it says."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from common import measurements
from common.measurements import BY_EVAL_NAME, BY_NAME, COLUMNS, EVALUATIONS, MEASUREMENTS
from common.metrics import METRICS
from experiments.analysis.measures import Summary
from experiments.analysis.run_files import PHASES, EvalRow, MetricsRow
from experiments.design import prereg, registration
from experiments.report import csv_export

ROOT = Path(__file__).resolve().parents[2]
SERIES = set(BY_NAME) | {f"seconds_{name}" for name in (*PHASES, "total")}
OF_A_ROW = ("gauges.py", "progress.py", "steprow.py", "record.py", "loggers.py")
NOT_OF_A_STEP = {
    "purpose",
    "cos",
    "update_cos",
}  # keys of rollouts/ and modules.jsonl, which record.py and gauges.py read too


def keys_of(path, holds):
    """Constant keys that a file asks of a mapping whose expression `holds` accepts: x["key"], x.get("key")."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Subscript):
            owner, key = node.value, node.slice
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "get"
            and node.args
        ):
            owner, key = node.func.value, node.args[0]
        else:
            continue
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and holds(ast.unparse(owner).split(".")[-1]):
            yield key.value


def strays():
    """(file, key) of keys of a step's or evaluation's row that the table has not."""
    for path in sorted((ROOT / "experiments").rglob("*.py")):
        yield from ((path.name, key) for key in keys_of(path, lambda name: name == "series") if key not in SERIES)
    for path in sorted((ROOT / "services" / "trainer").glob("*.py")):
        if path.name in OF_A_ROW:
            known = SERIES | set(BY_EVAL_NAME) | NOT_OF_A_STEP
            yield from ((path.name, key) for key in keys_of(path, lambda name: name == "row") if key not in known)


def test_no_key_is_named_elsewhere_that_the_table_has_not():
    assert list(strays()) == []


def test_the_search_for_strays_finds_one(tmp_path):
    stray = tmp_path / "x.py"
    stray.write_text('run.series["kl_everything"]\nrow.get("hack")\nother["fine"]\n')
    assert list(keys_of(stray, lambda name: name in ("series", "row"))) == ["kl_everything", "hack"]


def test_names_are_unique_and_readers_have_just_these_fields():
    for table in (MEASUREMENTS, EVALUATIONS, COLUMNS):
        names = [getattr(m, "name", None) or m.key for m in table]
        assert len(set(names)) == len(names)
    assert set(MetricsRow.model_fields) == set(BY_NAME)
    assert set(EvalRow.model_fields) == set(BY_EVAL_NAME)
    for m in EVALUATIONS:
        assert EvalRow.model_fields[m.name].is_required() != m.later, m.name


def test_gauges_exist_and_are_shown_on_a_panel_or_alert():
    trainer = {m.name for m in METRICS if m.service == "trainer"}
    assert set(measurements.gauges()) <= trainer
    boards = "".join(path.read_text() for path in (ROOT / "deploy/grafana/dashboards").glob("*.json"))
    assert [g for g in measurements.gauges() if not re.search(rf"{g}\b", boards)] == []


@pytest.mark.parametrize("column", COLUMNS, ids=lambda c: c.key)
def test_a_column_rests_on_rows_of_the_table_and_on_a_field_of_the_summary(column):
    assert column.sources and column.caption and "{" not in column.caption.format(window="w")
    fields = {f.name for f in dataclasses.fields(Summary)} | {
        n for n, v in vars(Summary).items() if isinstance(v, property)
    }
    assert column.value in fields
    assert (column.scale == 100) == ("%" in column.head or "Δ" in column.head), "percent and percentage points"


def test_what_a_user_decides_by_has_gauge_and_column():
    in_columns = {name for c in COLUMNS for name in c.of}
    for name in (
        "kl_all",
        "updates",
        "trained_groups",
        "drift_ref_cos_mean",
        "displacement_ref",
        "hack_strict",
        "hack_loose",
    ):
        assert BY_NAME[name].gauge and name in in_columns, name
    assert BY_EVAL_NAME["nll_margin"].gauge and "eval.nll_margin" in in_columns
    assert "nll_margin" in csv_export.LATER


def test_thresholds_are_those_registered():
    rules, outcomes = prereg.load().measures, registration.load()
    assert BY_NAME["hack_strict"].threshold[0] == rules.onset_pp / 100
    assert BY_NAME["cos_mean"].threshold[0] == outcomes.diagnostics.cos_above
    assert BY_NAME["frac_fired"].threshold[0] == outcomes.diagnostics.fired_above
    assert BY_NAME["truncated_rate"].threshold[0] == outcomes.outcomes.truncated_pp / 100
    assert sum(m.threshold is not None for m in MEASUREMENTS) == 4


NOT_ROWS = {  # counts, shares of runs and single modules: no row of the table is drawn there
    "", "Runs", "Modules", "Module (layer)", "Mean over modules", "Runs not yet hacking", "pairs of v", "trained on",
    "steps before the onset of hacking", "Hacking runs warned of (%)", "Hacking runs by onset; clean ones below",
    "cos_align of a module on held-out pairs", "cosine, mean over modules",
}  # fmt: skip
WRITERS = {"set_xlabel", "set_ylabel"}


def axis_texts(path):
    """Every string literal that a figure writes beside an axis."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            named = {k.arg: k.value for k in node.keywords if k.arg in ("xlabel", "ylabel")}
            colorbar = getattr(node.func, "attr", "") == "colorbar"
            named |= {k.arg: k.value for k in node.keywords if colorbar and k.arg == "label"}
            given = [*named.values(), *(node.args[:1] if getattr(node.func, "attr", "") in WRITERS else [])]
            yield from (value.value for value in given if isinstance(value, ast.Constant))


def test_axes_of_figures_come_from_the_table():
    """A quantity of the table is drawn under the words of the table; a literal beside an axis is of something else."""
    found = {text for path in (ROOT / "experiments/report/figures").glob("*.py") for text in axis_texts(path)}
    assert found and found <= NOT_ROWS, found - NOT_ROWS
    assert measurements.axis("eval.pass_oracle") != measurements.axis("pass_oracle")
    with pytest.raises(KeyError, match="infra_errors has no axis"):
        measurements.axis("infra_errors")
