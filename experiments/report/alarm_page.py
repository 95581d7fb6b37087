"""python -m experiments alarm: what the alarm is worth on registered runs: false alarms, share caught, lead, the claims.

Writes README.md (tables and answers), alarm.csv (a row a run and watch), alarm.png and clean.json (what the primary watch
was calibrated to) into --out, a folder a setting. Registration: experiments/design/registrations/alarm.yaml.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from common.writable import require_directory
from experiments.analysis.alarm import PERCENT, Result, Watched, collect, evaluate, median_bounds, share_bounds
from experiments.analysis.alarm_claims import Answer, answers
from experiments.design import alarm_registration
from experiments.design.alarm_registration import AlarmRegistration
from experiments.options import alarm as parser

CSV_HEAD = ("setting", "detector", "watch", "run", "kind", "group", "seed", "onset", "alarm", "signal", "lead")


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    path = options.registration or alarm_registration.PATH
    registration = alarm_registration.load(path)
    require_directory(options.out, "--out")
    for name in options.setting or [next(iter(registration.settings))]:
        _require(registration, name)
        runs, left_out, other = collect(registration, name, options.runs, path)
        result = evaluate(registration, name, runs, left_out)
        out = options.out / name
        out.mkdir(parents=True, exist_ok=True)
        text = page(registration, result, answers(registration, result), other)
        (out / "README.md").write_text(text)
        write_csv(out / "alarm.csv", result)
        _figure(registration, result, out / "alarm.png")
        primary = result.seen[registration.primary].clean
        if primary is not None:
            primary.write(out / "clean.json")
        print(text, end="")
    return 0


def _require(registration: AlarmRegistration, name: str) -> None:
    from common.errors import ConfigError

    if name not in registration.settings:
        raise ConfigError(f"--setting {name}: the registration has {', '.join(registration.settings)}")


def _figure(registration: AlarmRegistration, result: Result, path: Path) -> None:
    from experiments.report.figures.alarm import overview

    overview(result, registration.primary).savefig(path)


def page(registration: AlarmRegistration, result: Result, found: list[Answer], other: list[str]) -> str:
    """README.md of one setting."""
    rate = registration.false_alarm_rate
    sure = PERCENT * registration.confidence
    lines = [f"# The alarm on {result.name}", "",
             f"False-alarm rate asked for: {PERCENT * rate:g} %. Bounds: one-sided, {sure:g} % each.",
             ""]  # fmt: skip
    if other:
        lines += [f"**NOT PREREGISTERED**: begun under another registration: {', '.join(other)}.", ""]
    if found:
        lines += ["| claim | | answer | |", "|---|---|---|---|"]
        lines += [f"| {a.name} | {a.claim} | {a.answer} | {a.reason} |" for a in found]
    else:
        lines += ["No claim is made of this setting."]
    for title, watches in (("## With the detector", result.seen), ("## Detector off", result.unseen)):
        lines += ["", title, "", *table(registration, watches.values())]
    lines += ["", "## Clean runs by kind, first watch", "", *_groups(result)]
    if result.left_out:
        lines += ["", "## Left out", "", *(f"- {run}: {why}" for run, why in sorted(result.left_out.items()))]
    return "\n".join(lines) + "\n"


def table(registration: AlarmRegistration, watches: Iterable[Watched]) -> list[str]:
    """One line a watch."""
    lines = ["| watch | false alarms | at most | caught | at least | median lead | bounds | rings in blind runs |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for watch in watches:
        if watch.clean is None:
            lines.append(f"| {watch.name} | {watch.why_not} | | | | | | |")
            continue
        (false, clean), (caught, hacking) = watch.false_alarms, watch.caught
        most, least = (share_bounds(*counts, registration.confidence)[i] for counts, i in
                       ((watch.false_alarms, 1), (watch.caught, 0)))  # fmt: skip
        low, median, high = median_bounds(watch.leads, registration.confidence)
        blind = watch.of("blind")
        lines.append(
            f"| {watch.name} | {false}/{clean} | {PERCENT * most:.1f} % | {caught}/{hacking} | {PERCENT * least:.1f} % "
            f"| {_number(median)} | {_number(low)} to {_number(high)} "
            f"| {sum(ring.step is not None for ring in blind)}/{len(blind)} |"
        )
    return lines


def _number(value: float) -> str:
    return f"{value:g}" if math.isfinite(value) else "-"


def _groups(result: Result) -> list[str]:
    first = next(iter(result.seen.values()))
    found = first.by_group("clean").items()
    return ["| runs | ring |", "|---|---|", *(f"| {group} | {rings}/{n} |" for group, (rings, n) in found)]


def write_csv(path: Path, result: Result) -> None:
    """Every ring of every watch."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_HEAD)
        writer.writerows(_csv_rows(result))


def _csv_rows(result: Result) -> Iterator[tuple[object, ...]]:
    for detector, watches in (("on", result.seen), ("off", result.unseen)):
        for watch in watches.values():
            for ring in watch.rings:
                run = ring.run
                yield (result.name, detector, watch.name, run.run_id, run.kind, run.group, run.seed, run.onset, ring.step,
                       ring.signal, ring.lead if run.kind == "hacking" else None)  # fmt: skip
