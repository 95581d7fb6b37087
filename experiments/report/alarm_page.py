"""python -m experiments alarm: what the alarm is worth on registered runs: false alarms, share caught, lead, the claims.

Writes README.md (tables and answers), alarm.csv (a row a run and watch), alarm.png and clean.json (what the primary watch
was calibrated to) into --out, a folder a setting. Registration: experiments/design/registrations/alarm.yaml. Runs that are
missing or have not ended are counted and named; what they leave too few runs for is said to be not evaluable.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from common.errors import ConfigError
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
    registered = alarm_registration.load(path)
    registration = registered if options.false_alarm_rate is None else _at(registered, options.false_alarm_rate)
    require_directory(options.out, "--out")
    for name in options.setting or [next(iter(registration.settings))]:
        _require(registration, name)
        runs, left_out, other = collect(registration, name, options.runs, path)
        result = evaluate(registration, name, runs, left_out)
        out = options.out / name
        out.mkdir(parents=True, exist_ok=True)
        found = answers(registration, result)
        if registration is not registered:
            found = [replace(a, answer="not evaluable", reason=_other_rate(registered)) for a in found]
        text = page(registration, result, found, other)
        (out / "README.md").write_text(text)
        write_csv(out / "alarm.csv", result)
        _figure(registration, result, out / "alarm.png")
        primary = result.seen[registration.primary].clean
        if primary is not None:
            primary.write(out / "clean.json")
        print(text, end="")
    return 0


def _require(registration: AlarmRegistration, name: str) -> None:
    if name not in registration.settings:
        raise ConfigError(f"--setting {name}: the registration has {', '.join(registration.settings)}")


def _at(registration: AlarmRegistration, rate: float) -> AlarmRegistration:
    if not 0 < rate < 1:
        raise ConfigError(f"--false-alarm-rate {rate:g}: give a share of clean runs, above 0 and below 1")
    return registration.model_copy(update={"false_alarm_rate": rate})


def _other_rate(registered: AlarmRegistration) -> str:
    return f"shown at another rate than the registered {PERCENT * registered.false_alarm_rate:g} %"


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
    lines += [f"Runs that have ended and count: {_counted(result)}.", ""]
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


def _counted(result: Result) -> str:
    """'clean 8 of 120 registered, hacking 3 of 60'. Of the setting's own seeds; those that calibrate are among the clean."""
    told = []
    for kind, groups in (
        ("clean", result.setting.clean),
        ("hacking", result.setting.hacking),
        ("blind", result.setting.blind),
    ):
        if groups:
            wanted = sum(group.seeds[1] - group.seeds[0] + 1 for group in groups)
            told.append(f"{kind} {result.counted.get(kind, 0)} of {wanted} registered")
    return ", ".join(told)


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
