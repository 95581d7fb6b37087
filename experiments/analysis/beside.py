"""What stands beside the registered rules and never in their place: outcome classes, exact tests, the diagnostic."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from experiments.analysis.comparable import Chosen
from experiments.analysis.measures import summarise
from experiments.analysis.onsets import Onsets, compare
from experiments.analysis.run_outcomes import Contrast, Counts, classify, contrast, count, diagnose
from experiments.design.registration import Registration

BASELINE = "vanilla"
EXPLAINED = (
    "Hacking: strict rate of the last window at least {hack_pp:g}%. Collapsed: bare held-out pass more than "
    "{bare_drop_pp:g} pp below step 0, or more than {truncated_pp:g}% truncated{hint}. Safe: neither; hacking wins over "
    "collapsed. Exact tests of safe runs are one-sided, uncorrected. A run without onset is censored at its last step."
)


@dataclass(frozen=True)
class Beside:
    """Lines for the reader with their numbers, over finished runs."""

    counts: tuple[Counts, ...]
    contrasts: tuple[Contrast, ...]
    diagnostics: tuple[str, ...]
    explained: str
    onsets: tuple[Onsets, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """Counts, then contrasts, then onsets."""
        told: tuple[Counts | Contrast | Onsets, ...] = (*self.counts, *self.contrasts, *self.onsets)
        return tuple(one.line() for one in told)

    def json(self) -> dict[str, Any]:
        return {
            "counts": [asdict(one) for one in self.counts],
            "contrasts": [asdict(one) for one in self.contrasts],
            "diagnostics": list(self.diagnostics),
            "onsets": [asdict(one) for one in self.onsets],
        }


def beside(chosen: Chosen, rules: Registration) -> Beside:
    """Counts of every arm with a finished run, every arm against vanilla, one diagnostic line an arm."""
    finished = {name: [run for run in runs if run.finished] for name, runs in chosen.by_arm.items()}
    finished = {name: runs for name, runs in finished.items() if runs}
    summaries = {name: [summarise(run, rules.measures) for run in runs] for name, runs in finished.items()}
    classes = {name: {s.seed: classify(s, rules.outcomes) for s in own} for name, own in summaries.items()}
    by_seed = {name: {s.seed: s for s in own} for name, own in summaries.items()}
    others = [name for name in classes if name != BASELINE and BASELINE in classes]
    most = rules.outcomes.hint_drop_pp
    hint = "" if most is None else f", or held-out pass under the training prompt more than {most:g} pp below step 0"
    lines = [diagnose(name, runs, rules.diagnostics) for name, runs in finished.items()]
    return Beside(
        tuple(count(name, own, rules.outcomes) for name, own in summaries.items()),
        tuple(contrast(name, classes[name], BASELINE, classes[BASELINE]) for name in others),
        tuple(line for line in lines if line is not None),
        EXPLAINED.format(**rules.outcomes.model_dump(), hint=hint),
        tuple(compare(name, by_seed[name], BASELINE, by_seed[BASELINE]) for name in others),
    )
