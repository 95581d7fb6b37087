"""A dashboard drawn with matplotlib from Prometheus' answers: not Grafana, but somebody can look at every query."""

import re
from datetime import datetime
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np
from boards import BOARDS, LEGEND
from real_prometheus import SCRAPE_S

CELL = (0.72, 0.36)
SIZES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def draw(board: str, prometheus, path: Path) -> None:
    """Every panel at its place; `path` ends in .png."""
    made = BOARDS[board]
    rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in made["panels"])
    figure = plt.figure(figsize=(24 * CELL[0], rows * CELL[1]), facecolor="white")
    for panel in made["panels"]:
        place = panel["gridPos"]
        x, y, w, h = place["x"] / 24, 1 - (place["y"] + place["h"]) / rows, place["w"] / 24, place["h"] / rows
        if panel["type"] == "row":
            figure.text(x + 0.005, y + h / 2, panel["title"], weight="bold", fontsize=13, va="center")
            continue
        left = 0.075 if panel["type"] in ("heatmap", "bargauge") else 0.035
        box = [x + left, y + 2.2 / rows, w - left - 0.01, h - 3.2 / rows]
        axes = figure.add_axes(box)
        axes.set_title(f"{panel['title']}  [{_unit(panel)}]", fontsize=9, loc="left")
        series = [
            (_name(s, t), _with_gaps(s["values"])) for t in panel["targets"] for s in prometheus.query_range(t["expr"])
        ]
        DRAW[panel["type"]](axes, panel, series)
    figure.savefig(path, dpi=70)
    plt.close(figure)


def _unit(panel) -> str:
    return panel["fieldConfig"]["defaults"]["unit"].removeprefix("suffix: ")


def _name(series, target) -> str:
    return LEGEND.sub(lambda m: series["metric"].get(m[1], "?"), target["legendFormat"])


def _with_gaps(values):
    """A NaN where scrapes are missing, so that nothing is drawn across."""
    out = []
    for t, v in values:
        if out and t - out[-1][0] > 2.5 * SCRAPE_S:
            out += [(out[-1][0] + SCRAPE_S, np.nan), (t - SCRAPE_S, np.nan)]
        out.append((t, v))
    return out


def _style(panel, name) -> dict:
    """Colour and dash of a curve, as the panel's overrides say."""
    style = {}
    for override in panel["fieldConfig"]["overrides"]:
        kind, options = override["matcher"]["id"], override["matcher"]["options"]
        if (kind == "byName" and options == name) or (kind == "byRegexp" and re.search(options.strip("/"), name)):
            for change in override["properties"]:
                if change["id"] == "color":
                    style["color"] = change["value"]["fixedColor"]
                elif change["id"] == "custom.lineStyle":
                    style["ls"] = "--"
    return style


def _lines(axes, panel, series) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    stack = defaults.get("custom", {}).get("stacking", {}).get("mode") == "normal"
    bands = {}
    for name, values in series:
        times, numbers = [datetime.fromtimestamp(t) for t, _ in values], [v for _, v in values]
        if name.startswith("null band"):
            bands[name] = (times, numbers)
        elif not stack:
            axes.plot(times, numbers, lw=1.2, label=name, **_style(panel, name))
    if stack:
        times = sorted({t for _, values in series for t, _ in values})
        table = [[dict(values).get(t, np.nan) for t in times] for _, values in series]
        colours = [_style(panel, n).get("color", f"C{i}") for i, (n, _) in enumerate(series)]
        moments = [datetime.fromtimestamp(t) for t in times]
        axes.stackplot(moments, table, labels=[n for n, _ in series], colors=colours, alpha=0.7)
    if len(bands) == 2:
        (times, upper), (_, lower) = bands.values()
        axes.fill_between(times, upper, lower, color="grey", alpha=0.25, label="null band")
    for step in defaults.get("thresholds", {}).get("steps", []):
        if step.get("value") is not None:
            axes.axhline(step["value"], color=step["color"], ls="--", lw=1)
    if defaults.get("custom", {}).get("scaleDistribution", {}).get("type") == "log":
        axes.set_yscale("log")
    if series and "min" in defaults:
        axes.set_ylim(defaults["min"], defaults.get("max", 1.1 * axes.get_ylim()[1]))
    if defaults["unit"] == "bytes":
        axes.yaxis.set_major_formatter(lambda value, _: _short(value, "bytes"))
    axes.xaxis.set_major_locator(mdates.AutoDateLocator(minticks=2, maxticks=5))
    axes.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M:%S"))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        columns = max(1, panel["gridPos"]["w"] // 3)
        axes.legend(fontsize=6, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False)


def _stat(axes, panel, series) -> None:
    axes.axis("off")
    mappings = panel["fieldConfig"]["defaults"].get("mappings", [])
    named = {value: to["text"] for mapping in mappings for value, to in mapping["options"].items()}
    last = [(name, _short(values[-1][1], _unit(panel))) for name, values in series if values]
    words = [f"{name}: {named.get(value, value)}" for name, value in last]
    axes.text(0.5, 0.5, "\n".join(words) or "no data", ha="center", va="center", fontsize=11)


def _short(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{100 * value:.1f} %"
    if unit == "bytes":
        return next((f"{value / size:.1f} {name}" for size, name in SIZES if value >= size), f"{value:.0f} B")
    return f"{value:.4g}"


def _bars(axes, panel, series) -> None:
    names, last = [n for n, _ in series], [values[-1][1] for _, values in series]
    axes.barh(names, last, color=["tab:orange" if v > 0 else "tab:blue" for v in last])
    axes.set_xlim(panel["fieldConfig"]["defaults"]["min"], panel["fieldConfig"]["defaults"]["max"])
    axes.tick_params(labelsize=7)


def _heatmap(axes, panel, series) -> None:
    seen = {t for _, values in series for t, _ in values}
    times = np.arange(min(seen), max(seen) + SCRAPE_S / 2, SCRAPE_S)
    table = np.full((len(series), len(times)), np.nan)
    for i, (_, values) in enumerate(series):
        for t, v in values:
            table[i, round((t - times[0]) / SCRAPE_S)] = v
    names, colour = [n for n, _ in series], panel["options"]["color"]
    if panel["targets"][0].get("format") == "heatmap":  # cumulative buckets, in the order of their bounds
        order = sorted(range(len(names)), key=lambda i: float(names[i].replace("+Inf", "inf")))
        names, table = [names[i] for i in order], np.diff(table[order], axis=0, prepend=0)
    reverse = "_r" if colour.get("reverse") else ""
    edges = [datetime.fromtimestamp(t) for t in times]
    mesh = axes.pcolormesh(
        edges, np.arange(len(names)), table, cmap=colour["scheme"] + reverse, vmin=colour.get("min"), vmax=colour.get("max"),
        shading="nearest",
    )  # fmt: skip
    axes.set_yticks(range(len(names)), names, fontsize=4 if len(names) > 14 else 7)
    axes.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M:%S"))
    axes.tick_params(axis="x", labelsize=7)
    axes.figure.colorbar(mesh, ax=axes, pad=0.01)


DRAW = {"timeseries": _lines, "stat": _stat, "bargauge": _bars, "heatmap": _heatmap}
