"""Parts that all dashboards are made of. Every panel takes a title, a unit and a description; none is optional.

A query is (PromQL, legend). `$run`, `$arm` and `$seed` are the dashboard's variables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import prometheus as prometheus_models

SOURCE = models.DataSourceRef(type_val="prometheus", uid="prometheus")
RUNS = '{run=~"$run", arm=~"$arm", seed=~"$seed"}'
COSINE = "none"
P = TypeVar("P", bargauge.Panel, heatmap.Panel, stat.Panel, timeseries.Panel)
Query = tuple[str, str]


def of(metric: str, *more: str) -> str:
    """The metric of the chosen runs: of("rs_hack_rate", 'kind="strict"')."""
    return metric + RUNS[:-1] + "".join(f", {m}" for m in more) + "}"


def board(uid: str, title: str, description: str) -> dashboard.Dashboard:
    """An empty dashboard with its links to the other two."""
    link = (
        dashboard.DashboardLink("rankspace")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags(["rankspace"])
        .keep_time(True)
        .include_vars(True)
    )
    return (
        dashboard.Dashboard(title)
        .uid(f"rankspace-{uid}")
        .description(description)
        .tags(["rankspace"])
        .time("now-1h", "now")
        .refresh("10s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(link)
    )


def with_runs(made: dashboard.Dashboard) -> dashboard.Dashboard:
    """The variables arm, seed and run; all by default."""
    narrower = {"arm": "rs_step", "seed": 'rs_step{arm=~"$arm"}', "run": 'rs_step{arm=~"$arm", seed=~"$seed"}'}
    for name, selector in narrower.items():
        made.with_variable(
            dashboard.QueryVariable(name)
            .label(name.capitalize())
            .query(f"label_values({selector}, {name})")
            .datasource(SOURCE)
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.NATURAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(models.VariableOption(text="All", value="$__all", selected=True))
        )
    return made


def row(title: str) -> dashboard.Row:
    return dashboard.Row(title)


def lines(
    title: str, unit: str, description: str, *queries: Query, width: int = 8, height: int = 8
) -> timeseries.Panel:
    """Curves over time."""
    panel = (
        timeseries.Panel()
        .line_width(1.5)
        .fill_opacity(0)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(_legend())
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
    )
    return _finish(panel, title, unit, description, queries, width, height)


def stacked(
    title: str, unit: str, description: str, *queries: Query, width: int = 8, height: int = 8
) -> timeseries.Panel:
    """Parts of a whole over time."""
    stacking = common.StackingConfig().mode(common_models.StackingMode.NORMAL)
    return (
        lines(title, unit, description, *queries, width=width, height=height)
        .fill_opacity(60)
        .line_width(0)
        .stacking(stacking)
    )


def number(
    title: str, unit: str, description: str, *queries: Query, bad: float | None = None, width: int = 4
) -> stat.Panel:
    """Present values. With `bad`, that value and anything above it is red."""
    steps = [models.Threshold(value=None, color="green")]
    if bad is not None:
        steps.append(models.Threshold(value=bad, color="red"))
    panel = (
        stat.Panel()
        .graph_mode(common_models.BigValueGraphMode("none" if bad is not None else "area"))
        .thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    return _finish(panel, title, unit, description, queries, width, 4)


def presence(title: str, description: str, query: Query, width: int = 8) -> stat.Panel:
    """A word a series: present for 1, absent for 0."""
    words = {"1": ("present", "green"), "0": ("absent", "red")}
    options = {value: models.ValueMappingResult(text=text, color=colour) for value, (text, colour) in words.items()}
    panel = (
        stat.Panel()
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .text_mode(common_models.BigValueTextMode.VALUE_AND_NAME)
        .mappings([models.ValueMap(options=options)])
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    return _finish(panel, title, "bool", description, [query], width, 8)


def bars(
    title: str, unit: str, description: str, *queries: Query, low: float, high: float, width: int = 8
) -> bargauge.Panel:
    """One present value a bar, on a common scale."""
    panel = (
        bargauge.Panel()
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .display_mode(common_models.BarGaugeDisplayMode.BASIC)
        .min(low)
        .max(high)
        .thresholds(
            dashboard.ThresholdsConfig()
            .mode(models.ThresholdsMode.ABSOLUTE)
            .steps([models.Threshold(value=None, color="blue"), models.Threshold(value=0, color="orange")])
        )
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    return _finish(panel, title, unit, description, queries, width, 10)


def diverging_map(
    title: str, unit: str, description: str, query: Query, limit: float, width: int = 16
) -> heatmap.Panel:
    """One row a series, colour from -limit (blue) over 0 (white) to limit (red)."""
    panel = (
        heatmap.Panel()
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_models.HeatmapColorMode.SCHEME)
            .scheme("RdBu")
            .reverse(True)
            .min(-limit)
            .max(limit)
            .steps(64)
        )
        .cell_gap(0)
        .cell_values(heatmap.CellValues().unit(unit).decimals(3))
        .filter_values(heatmap.FilterValueRange().le(-2))  # the default hides everything below zero
        .rows_frame(heatmap.RowsHeatmapOptions().layout(common_models.HeatmapCellLayout.AUTO))
        .y_axis(heatmap.YAxisConfig().unit("string"))
        .show_legend()
    )
    return _finish(panel, title, unit, description, [query], width, 10)


def bucket_map(title: str, unit: str, description: str, expr: str, width: int = 8) -> heatmap.Panel:
    """A Prometheus histogram over time: how many a bucket and interval."""
    panel = (
        heatmap.Panel()
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_models.HeatmapColorMode.SCHEME)
            .scheme("Blues")
            .steps(32)
            .reverse(False)
        )
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .cell_values(heatmap.CellValues().unit("reqps"))
        .show_legend()
    )
    _finish(panel, title, unit, description, [], width, 8)
    query = _target(0, (expr, "{{le}}")).format(prometheus_models.PromQueryFormat.HEATMAP)
    return panel.with_target(query)


def shaded_between(panel: timeseries.Panel, upper: str, lower: str) -> timeseries.Panel:
    """Grey between two of the panel's curves."""
    grey = _colour("#8e8e8e")
    thin = models.DynamicConfigValue(id_val="custom.lineWidth", value=0.5)
    fill = [
        models.DynamicConfigValue(id_val="custom.fillBelowTo", value=lower),
        models.DynamicConfigValue(id_val="custom.fillOpacity", value=18),
    ]
    return panel.override_by_name(upper, [grey, thin, *fill]).override_by_name(lower, [grey, thin])


def coloured(panel: timeseries.Panel, colours: dict[str, str]) -> timeseries.Panel:
    """Fixed colours by name of the curve, where a colour means something."""
    for name, colour in colours.items():
        panel.override_by_name(name, [_colour(colour)])
    return panel


def dashed(panel: timeseries.Panel, ending: str) -> timeseries.Panel:
    """Curves whose name ends so are dashed."""
    style = models.DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 6]})
    return panel.override_by_regexp(f"/{ending}$/", [style])


def marked(panel: timeseries.Panel, value: float, colour: str = "red") -> timeseries.Panel:
    """A dashed line at `value`."""
    steps = [models.Threshold(value=None, color="transparent"), models.Threshold(value=value, color=colour)]
    style = common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED)
    return panel.thresholds(
        dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
    ).thresholds_style(style)


def _colour(name: str) -> models.DynamicConfigValue:
    return models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": name})


def _finish(panel: P, title: str, unit: str, description: str, queries: Sequence[Query], width: int, height: int) -> P:
    panel.title(title).unit(unit).description(description).datasource(SOURCE).span(width).height(height)
    for number, query in enumerate(queries):
        panel.with_target(_target(number, query))
    return panel


def _target(number: int, query: Query) -> prometheus.Dataquery:
    expr, legend = query
    return (
        prometheus.Dataquery()
        .expr(expr)
        .legend_format(legend)
        .range()
        .ref_id(chr(ord("A") + number))
        .datasource(SOURCE)
    )


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
