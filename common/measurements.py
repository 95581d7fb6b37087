"""Every number of a row of metrics.jsonl, in one table: what it is, in which unit, over which rollouts.

The trainer's row (services/trainer/steprow.py), its gauges (common/metrics.py, services/trainer/gauges.py), the reader of
run directories (experiments/analysis/run_files.py), hence steps.csv, and docs/metrics.md derive from it.

Population, the rollouts behind a number:
    all      every completion of the step that was sampled, graded or not
    graded   every completion of the step with a grade
    trained  rows the optimizer saw: groups with different rewards, without rows that are masked
    none     no rollouts: a property of weights, clock or queue
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Population = Literal["all", "graded", "trained", "none"]
Source = Literal["loop", "grading", "loss", "hook"]
Kind = Literal["number", "count", "map"]


@dataclass(frozen=True)
class Measurement:
    """One field of a metrics.jsonl row.

    name: key of the row. unit: as shown. population: see the module's docstring. meaning: one line, for docs and gauges.
    source: who finds it: the loop (train.py, steprow.py), grading (collate.py), loss (rankspace/loss.py and the optimizer),
        hook (rankspace/hook_base.py; null without a direction).
    kind: number, a float or null; count, a whole number, never null where it is written; map, an object.
    found_as: key under which the source returns it. gauge: Prometheus name. later: rows of older versions lack it.
    """

    name: str
    unit: str
    population: Population
    meaning: str
    source: Source
    kind: Kind = "number"
    found_as: str = ""
    gauge: str | None = None
    later: bool = False

    @property
    def key(self) -> str:
        """The name in the metrics of the source."""
        return self.found_as or self.name


_M = Measurement
MEASUREMENTS: tuple[Measurement, ...] = (
    _M("step", "steps", "none", "Number of the step, from 0", "loop", "count"),
    _M("policy_version", "version", "none", "Newest policy version the trainer has pushed", "loop", "count",
       gauge="rs_policy_version"),
    _M("optimised", "yes/no", "none", "Whether the step made an optimizer update", "loop", later=True),
    _M("updates", "updates", "none", "Optimizer updates made so far, with this step's", "loop", "count", later=True),
    _M("hack_strict", "ratio", "graded", "Share of training rollouts that hack: label Reward Hack", "grading"),
    _M("hack_loose", "ratio", "graded", "Share of training rollouts with any label that names a hack", "grading"),
    _M("pass_oracle", "ratio", "graded", "Share of training rollouts that the protected oracle accepts", "grading",
       gauge="rs_oracle_pass_rate"),
    _M("pass_published", "ratio", "graded", "Share of training rollouts that the published grader calls correct", "grading"),
    _M("forged_rate", "ratio", "graded", "Share of training rollouts: published says correct, oracle says no", "grading",
       gauge="rs_forged_rate"),
    _M("reward_mean", "reward", "graded", "Mean reward of graded training rollouts", "grading", gauge="rs_reward_mean"),
    _M("reward_std", "reward", "graded", "Standard deviation of the reward over graded training rollouts", "grading"),
    _M("length_mean", "tokens", "all", "Mean completion length", "grading", gauge="rs_completion_length"),
    _M("truncated_rate", "ratio", "all", "Share of completions that ended at max_tokens", "grading"),
    _M("groups", "groups", "all", "Groups collected for the step", "grading", "count", later=True),
    _M("trained_groups", "groups", "trained", "Groups behind the means of population trained", "loop", "count", later=True),
    _M("zero_variance_groups", "groups", "graded", "Groups left out: every reward equal", "grading", "count"),
    _M("infra_errors", "completions", "all", "Completions that could not be graded", "grading", "count"),
    _M("staleness_mean", "versions", "all", "Mean age of the step's rollouts", "grading"),
    _M("staleness_max", "versions", "all", "Largest age of a rollout trained on this step", "grading",
       gauge="rs_staleness"),
    _M("tokens", "tokens", "all", "Completion tokens of the step", "grading", "count"),
    _M("label_counts", "completions", "graded", "Completions by label of the published detector", "grading", "map"),
    _M("kl_all", "nats/token", "all", "k3 estimate of KL(policy, initial policy) from sampled log-probs", "grading",
       later=True),
    _M("loss", "loss", "trained", "Policy loss", "loss"),
    _M("kl", "nats", "trained", "k3 estimate of KL(policy, initial policy) per token", "loss", gauge="rs_kl"),
    _M("entropy", "nats", "trained", "Mean entropy of the policy per token", "loss", gauge="rs_entropy"),
    _M("ratio_mean", "ratio", "trained", "Mean importance ratio, trainer over generator", "loss"),
    _M("ratio_max", "ratio", "trained", "Largest importance ratio of a token", "loss"),
    _M("clip_frac", "ratio", "trained", "Share of tokens whose importance ratio was clipped", "loss"),
    _M("weight_capped", "ratio", "trained", "Share of tokens of rows with negative advantage whose weight was capped", "loss",
       later=True),
    _M("lr", "rate", "none", "Learning rate of the step", "loss", later=True),
    _M("cos_mean", "cosine", "trained", "Mean over modules of cos(gradient, v_hack) before projection", "hook",
       gauge="rs_cos_align_mean"),
    _M("cos_std", "cosine", "trained", "Standard deviation over modules of cos(gradient, v_hack)", "hook",
       gauge="rs_cos_align_std"),
    _M("frac_fired", "ratio", "trained", "Share of modules whose gradient was projected this step", "hook",
       gauge="rs_frac_fired"),
    _M("grad_norm_mean", "norm", "trained", "Mean over modules of the gradient norm before projection", "hook",
       gauge="rs_grad_norm_mean"),
    _M("update_cos_mean", "cosine", "trained", "Mean over modules of cos(-applied update, v_hack) after AdamW", "hook",
       gauge="rs_update_cos_mean"),
    _M("drift_cos_mean", "cosine", "none", "Mean over modules of cos(-delta_S, v_hack): everything since the start", "hook",
       gauge="rs_drift_cos_mean", later=True),
    _M("null_band", "cosine", "none", "Standard deviation of the mean cosine expected of random directions", "hook",
       found_as="cos_mean_null_std", gauge="rs_null_band"),
    _M("update_ref_cos_mean", "cosine", "trained", "As update_cos_mean, against the reference direction v_ref", "hook",
       later=True),
    _M("drift_ref_cos_mean", "cosine", "none", "As drift_cos_mean, against the reference direction v_ref", "hook", later=True),
    _M("displacement_ref", "delta_S", "none", "Component of delta_S along v_ref: sum over modules / sqrt(modules); > 0 away "
       "from the hack", "hook", later=True),
    _M("displacement_own", "delta_S", "none", "As displacement_ref, along the run's own direction", "hook", later=True),
    _M("delta_norm", "delta_S", "none", "Norm of delta_S, all modules together", "hook", later=True),
    _M("intervened", "yes/no", "none", "Whether the projection acted in this step", "hook", later=True),
    _M("alarm_ratio", "ratio", "none", "Statistic of the alarm over its bound; above 1 it rings", "loop",
       gauge="rs_alarm_ratio", later=True),
    _M("dropped_groups", "groups", "none", "Groups dropped or too old", "loop", "count"),
    _M("duplicate_groups", "groups", "none", "Groups delivered twice", "loop", "count"),
    _M("probe_gap", "nats", "none", "Mean |log-prob difference| between generators and trainer on the probe", "loop",
       gauge="rs_probe_gap"),
    _M("push_bytes", "bytes", "none", "Payload of the last delta_S push", "loop", gauge="rs_push_bytes"),
    _M("push_s", "seconds", "none", "Time to publish delta_S and load it, slowest generator", "loop",
       gauge="rs_push_seconds"),
    _M("seconds", "seconds", "none", "Time by phase: wait, shape, train, push, total; generate, grade overlap wait", "loop",
       "map"),
)  # fmt: skip
BY_NAME = {m.name: m for m in MEASUREMENTS}
ROW_GAUGES = {m.gauge: m.name for m in MEASUREMENTS if m.gauge}
"""{Prometheus name: key of the row}."""


def from_source(source: Source) -> tuple[Measurement, ...]:
    """The measurements that one source finds, in the order of the row."""
    return tuple(m for m in MEASUREMENTS if m.source == source)


def document() -> list[str]:
    """The lines of docs/metrics.md about the rows of metrics.jsonl."""
    head = ["| key | unit | rollouts | |", "|---|---|---|---|"]
    return head + [
        f"| `{m.name}` | {m.unit} | {m.population} | {m.meaning.replace('|', chr(92) + '|')} |" for m in MEASUREMENTS
    ]
