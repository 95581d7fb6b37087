"""Panels of quantities of the table (common/measurements.py): gauge, unit, description and curve names come from there."""

from __future__ import annotations

from grafana_foundation_sdk.builders import timeseries

from common.measurements import Measurement, named
from deploy.grafana.panels import Query, lines, of

UNITS = {"ratio": "percentunit", "cosine": "none", "norm": "none", "rate": "none", "seconds": "s", "bytes": "bytes"}


def found(name: str) -> Measurement:
    """A row of the table; `eval.` before a key of eval.jsonl."""
    m = named(name)
    if m.gauge is None:
        raise KeyError(f"{name} has no gauge")
    return m


def curve(name: str, alone: bool = False) -> Query:
    """(PromQL, legend) of one quantity: a curve a run, and a value of the gauge's own label."""
    m = found(name)
    label, _, value = m.label.partition("=")
    assert m.gauge is not None  # `found` refuses
    legend = ["{{run}}", *([] if alone else [m.name]), *([f"{{{{{label}}}}}"] if label and not value else [])]
    return of(m.gauge, *([f'{label}="{value}"'] if value else [])), " ".join(legend)


def measured(title: str, *names: str, more: str = "", width: int = 6, height: int = 8) -> timeseries.Panel:
    """One panel with the curves of `names`, which share a unit. more: what the table does not say."""
    rows = [found(name) for name in names]
    (unit,) = {m.unit for m in rows}
    panel = lines(
        title, UNITS.get(unit, f"suffix: {unit}"), describe(rows) + more, *(curve(n, len(names) == 1) for n in names),
        width=width, height=height,
    )  # fmt: skip
    return panel.min(0).max(1) if unit == "ratio" else panel


def describe(rows: list[Measurement]) -> str:
    """'hack_strict: Share of ... (rollouts: graded). ' a row."""
    several = len(rows) > 1
    return "".join(
        (f"{m.name}: " if several else "")
        + m.meaning
        + (f" (rollouts: {m.population}). " if m.population not in ("none", "pairs") else ". ")
        for m in rows
    )


def threshold(name: str) -> float:
    """The registered threshold of a quantity."""
    value = found(name).threshold
    if value is None:
        raise KeyError(f"{name} has no threshold")
    return value[0]
