"""`python -m experiments report`: report.html (self-contained), report.md with figures/*.png, table.tex, viewer/, and the
numbers as runs.csv, steps.csv, evaluations.csv.

Everything is computed before the first file is written, so that a refusal leaves an older report untouched.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.measurements import COLUMNS, OUTCOME, Column
from common.writable import require_directory
from experiments.analysis import csv_files, verdict
from experiments.analysis.verdict import Page
from experiments.design import prereg, registration
from experiments.design.prereg import Measures
from experiments.options import report as parser
from experiments.report import captions, csv_export
from experiments.report.out import DPI
from experiments.report.tables import (
    ArmView,
    comparisons,
    eval_rows,
    headline_rows,
    measured_columns,
    packages,
    run_rows,
    sample_rollouts,
    views,
    with_outcomes,
)
from experiments.viewer import export

RUN_COLUMNS = ("onset", "outcome", "safe_low", "safe_high", "commit", "prereg")  # of runs.csv, after the numbers
FIGURES = ("headline", "trajectories", "cosines", "drift", "firing", "histogram", "heat_map", "onset", "phases")


@dataclass(frozen=True)
class Picture:
    """A rendered figure."""

    name: str
    title: str
    caption: str
    png: bytes

    @property
    def width(self) -> int:
        """CSS pixels at which type has the size of a caption."""
        return round(int.from_bytes(self.png[16:20], "big") / DPI * 122)

    @property
    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def main(argv: list[str]) -> int:
    make(parser().parse_args(argv))
    return 0


def make(options: argparse.Namespace) -> list[ArmView]:
    """Write the report that the options ask for, say where it is, and return its arms. ConfigError."""
    if options.columns is not None and not 1 <= options.columns <= len(COLUMNS):
        raise ConfigError(f"--columns {options.columns}: give a number from 1 to {len(COLUMNS)}")
    require_directory(options.out, "--out")
    page = _from_csv(options) if options.from_csv else verdict.page(options)
    chosen, arms = page.chosen, views(page.chosen, page.measures)
    columns = None if options.columns is None else COLUMNS[: options.columns]
    files = build_report(page, arms, options.title, columns, options.rollouts, viewer=not options.from_csv)
    more = "table.tex, runs.csv"
    if not options.from_csv:
        files |= csv_export.files(chosen.runs) | export.files(chosen.runs)
        more = "table.tex, *.csv, viewer/index.html"
    write(files, options.out)
    print(f"report: {options.out / 'report.html'} (also report.md, figures/, {more})")
    return arms


def _from_csv(options: argparse.Namespace) -> Page:
    path = options.registration or prereg.PATH
    return verdict.judged(csv_files.choose(options.from_csv), registration.load_any(path), path)


def build_report(
    page: Page,
    arms: list[ArmView],
    title: str,
    columns: tuple[Column, ...] | None = None,
    samples: int = 10,
    viewer: bool = True,
) -> dict[str, bytes]:
    """Every file of the report by its path under the output directory. Reads rollouts; writes nothing.

    columns: of the headline table; None: those that some run has numbers for, and the outcome classes.
    viewer: viewer/index.html will lie beside the report, so that it is linked.
    """
    pictures = draw(arms, page.measures)
    context = describe(page, arms, title, columns, samples)
    files = {f"figures/{picture.name}.png": picture.png for picture in pictures}
    by_name = {picture.name: picture for picture in pictures}
    for name, template in (
        ("report.html", "report.html.j2"),
        ("report.md", "report.md.j2"),
        ("table.tex", "table.tex.j2"),
    ):
        files[name] = render(template, pictures=by_name, viewer=viewer, **context).encode(errors="backslashreplace")
    files["runs.csv"] = runs_csv(context["runs"])
    return files


def write(files: dict[str, bytes], out: Path) -> None:
    """Write the files; figures of an older report that this one does not have are removed."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        if f"figures/{name}.png" not in files:
            (out / "figures" / f"{name}.png").unlink(missing_ok=True)
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)


def draw(arms: list[ArmView], rules: Measures) -> list[Picture]:
    """All figures that the runs have data for, in page order."""
    from experiments.report.figures import directions, outcomes, style

    style.apply()
    histogram = directions.alignment_histogram(arms)
    drawn = {
        "headline": outcomes.headline(arms),
        "trajectories": outcomes.trajectories(arms, rules),
        "cosines": directions.cosines(arms, rules),
        "drift": directions.drift(arms, rules),
        "firing": directions.firing(arms, rules),
        "histogram": histogram[0] if histogram else None,
        "heat_map": directions.heat_map(arms),
        "onset": outcomes.onset(arms),
        "phases": outcomes.phases(arms),
    }
    texts = captions.captions(arms, rules) | ({"histogram": histogram[1]} if histogram else {})
    return [
        Picture(name, captions.TITLES[name], texts[name], png(figure))
        for name, figure in drawn.items()
        if figure is not None
    ]


def png(figure: Any) -> bytes:
    """The figure as a file, the same bytes for the same figure; it is closed."""
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def describe(
    page: Page, arms: list[ArmView], title: str, columns: tuple[Column, ...] | None, samples: int
) -> dict[str, Any]:
    """The context of the templates."""
    chosen, rules = page.chosen, page.measures
    shown = measured_columns(arms) if columns is None else columns
    headline = headline_rows(arms, shown)
    if columns is None:
        shown, headline = (*shown, OUTCOME), with_outcomes(headline, page.beside.counts, page.rules.outcomes)
    return {
        "title": title,
        "preset": chosen.preset,
        "lead": captions.lead(arms),
        "banners": [*page.notes, *captions.banners(arms), *chosen.warnings],
        "left_out": chosen.left_out,
        "arms": arms,
        "columns": shown,
        "headline": headline,
        "table_caption": captions.table_caption(arms, rules, shown),
        "comparisons": comparisons(arms),
        "comparison_note": captions.comparison_note(arms),
        "evals": (evals := eval_rows(arms)),
        "tests": any(row["tests_end"] for row in evals),
        "evaluation_note": captions.evaluation_note(evals),
        "beside": page.beside,
        "verdicts": page.verdicts,
        "registration": page.file,
        "digest": page.digest,
        "runs": run_rows(arms, page.beside.counts, page.rules.outcomes),
        "all_columns": COLUMNS,
        "packages": packages(arms),
        "rollouts": [(arm, *sample_rollouts(arm, samples)) for arm in arms],
        "members": [(arm, ", ".join(str(run.seed) for run in arm.runs)) for arm in arms],
        "rollout_note": captions.rollout_note(arms, samples),
    }


def render(template: str, **context: Any) -> str:
    """A template from templates/; HTML is escaped, a missing name is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=jinja2.StrictUndefined,
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"anchor": anchor, "tex": tex, "fence": fence, "cell": cell, "pp": captions.pp,
                            "interval": captions.interval, "p_value": captions.p_value, "markup": markup}  # fmt: skip
    return environment.get_template(template).render(**context)


def anchor(name: str) -> str:
    """A name as an HTML id."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)


def cell(text: str) -> str:
    """Text inside a Markdown table: pipes and line breaks would end the cell."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def markup(text: str) -> str:
    """Prose from a run (a reason, a command) in Markdown: HTML in it stays text."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;")


def fence(text: str, language: str = "") -> str:
    """A Markdown code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text.rstrip()}\n{marks}"


_TEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "−": "$-$", "–": "--", "†": r"$^\dagger$", "Δ": r"$\Delta$", "δ": r"$\delta$",
        "‖": r"$\Vert$", "·": r"$\cdot$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        **{c: "\\" + c for c in "&%$#_{}"}}  # fmt: skip


def tex(text: str) -> str:
    """Plain text as LaTeX."""
    return "".join(_TEX.get(character, character) for character in str(text))


def runs_csv(rows: list[dict[str, Any]]) -> bytes:
    """The per-run table as CSV, for other people's plots."""

    def line(row: dict[str, Any]) -> list[object]:
        cells = [text.replace("−", "-").replace("–", "") for text in row["cells"]]
        own, last = ("id", "arm", "seed", "state", "steps", "window"), RUN_COLUMNS
        return [*(row[key] for key in own), *cells, *(row[key] for key in last)]

    head = ["run_id", "arm", "seed", "state", "steps", "window", *(c.key for c in COLUMNS), *RUN_COLUMNS]
    return csv_export.as_csv(head, map(line, rows))
