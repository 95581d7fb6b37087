"""Validation of a direction as a picture and a JSON file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .errors import RankspaceError

BLUE, GREY, RED = "#2f6db3", "#8a8a8a", "#c0392b"


def write_validation(validation: dict[str, Any], out: Path, title: str) -> tuple[Path, Path]:
    """Write `cos_align.json` and `cos_align.png` into the directory `out` (made if absent), each atomically.

    Args:
        validation: what `direction.validate` returned, with anything JSON-able beside it.

    Raises:
        RankspaceError: the directory cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        data, picture = out / "cos_align.json", out / "cos_align.png"
        _replace(data, (json.dumps(validation, indent=2) + "\n").encode())
        _replace(picture, _histogram(validation, title))
    except OSError as error:
        raise RankspaceError(f"cannot write to {out}: {error.strerror}; give another --out") from error
    return data, picture


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _histogram(validation: dict[str, Any], title: str) -> bytes:
    """PNG: cos_align over modules, its median and mean, and where a random direction would lie."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cos = [row["cos_align"] for row in validation["modules"]]
    band = 2 * validation["null_std_mean"]
    low, high = min([*cos, -band]), max([*cos, band])
    margin = 0.05 * (high - low)
    # not pyplot: a library leaves the caller's backend and figures alone
    figure = Figure(figsize=(7.5, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    axis.axvspan(-band, band, color=GREY, alpha=0.22, lw=0, label="random direction: ±2/√r")
    axis.hist(cos, bins=40, range=(low - margin, high + margin), color=BLUE, edgecolor="white", linewidth=0.5)
    axis.axvline(validation["median"], color=RED, lw=1.8, label=f"median {validation['median']:.3f} (healthy > 0.3)")
    axis.axvline(validation["mean"], color=RED, lw=1.8, ls="--", label=f"mean {validation['mean']:.3f} (target > 0.2)")
    axis.axvline(0.0, color="black", lw=0.8)
    axis.set_xlabel("cos_align: held-out pair difference against v, mean over pairs")
    axis.set_ylabel("modules")
    axis.set_title(
        f"{title}\n{validation['n_modules']} modules, {validation['n_pairs']} held-out pairs, "
        f"{validation['frac_positive']:.0%} of modules above 0 (gate: more than 50%)",
        fontsize=10,
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.locator_params(axis="y", integer=True)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
