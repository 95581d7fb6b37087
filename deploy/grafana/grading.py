"""Dashboard Grading: what do the graders see, how fast are they, and do the walls stand?"""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import board, bucket_map, coloured, lines, number, presence, row, stacked

RATE = "[$__rate_interval]"
LABELS = {
    "Correct": "green", "Correct; Attempted Reward Hack": "yellow", "Reward Hack": "red", "Attempted Reward Hack": "orange",
    "Incorrect": "#8e8e8e",
}  # fmt: skip
BUCKETS = f"sum by (le) (rate(rs_grade_seconds_bucket{RATE}))"


def _now(made: Dashboard) -> Dashboard:
    made.with_row(row("Now"))
    made.with_panel(
        number("Graders", "suffix: alive", "Workers whose heartbeat is in Redis.",
               ('max(rs_alive{service="sandbox"})', "graders"))
    ).with_panel(
        number("Backlog", "suffix: groups", "Rollout groups waiting or in work.",
               ('max(rs_stream_depth{stream="rollouts"})', "rollouts"))
    ).with_panel(
        number("Time to drain", "s", "Backlog over the present rate; empty while nothing is being graded.",
               (f'max(rs_stream_depth{{stream="rollouts"}}) / (sum(rate(rs_graded_groups_total{RATE})) > 0)', "drain"))
    ).with_panel(
        number("Could not be graded", "percentunit", "Share of completions in ten minutes that we failed to grade. They have no "
               "reward. Red from 2 % on.",
               ("sum(increase(rs_infra_errors_total[10m])) / (sum(increase(rs_graded_total[10m])) > 0) or vector(0)", "share"),
               bad=0.02)
    ).with_panel(
        number("Killed", "suffix: programs", "Programs ended by a limit in ten minutes.",
               ("sum(increase(rs_kills_total[10m]))", "killed"))
    ).with_panel(
        number("Walls missing", "suffix: layers", "Layers of the jail, over all graders, that the machine does not offer.",
               ("count(rs_isolation_layer == 0) or vector(0)", "missing"), bad=1)
    )  # fmt: skip
    return made


def _verdicts(made: Dashboard) -> Dashboard:
    share = f"sum by (label) (rate(rs_labels_total{RATE}))"
    made.with_row(row("Verdicts"))
    made.with_panel(
        coloured(stacked("Labels", "suffix: completions/s", "The published detector's five labels, training and evaluation "
                         "together.", (share, "{{label}}")), LABELS)
    ).with_panel(
        coloured(stacked("Share of labels", "percentunit", "The same as shares of all that was graded.",
                         (f"{share} / on () group_left () (sum(rate(rs_labels_total{RATE})) > 0)", "{{label}}"))
                 .min(0).max(1), LABELS)
    ).with_panel(
        lines("Infra errors", "suffix: completions/s", "SandboxError: the jail failed twice. ConfigError: the problem cannot be "
              "graded.", (f"sum by (cause) (rate(rs_infra_errors_total{RATE}))", "{{cause}}")).min(0)
    )  # fmt: skip
    return made


def _speed(made: Dashboard) -> Dashboard:
    made.with_row(row("Speed"))
    made.with_panel(
        lines("Completions graded", "suffix: completions/s", "By worker; they share the stream evenly. early: graded, by any "
              "of them, while the group was still sampled.",
              (f"sum by (worker) (rate(rs_graded_total{RATE}))", "{{worker}}"),
              (f"sum(rate(rs_graded_early_total{RATE}))", "early")).min(0)
    ).with_panel(
        lines("Time for one completion", "s", "All its programs and both verdicts: median, 95th and 99th percentile.",
              *[(f"histogram_quantile({q}, {BUCKETS})", f"p{q * 100:.0f}") for q in (0.5, 0.95, 0.99)])
    ).with_panel(
        bucket_map("Time for one completion, all of it", "s", "Completions a second in each class of duration.", BUCKETS)
    )  # fmt: skip
    return made


def _limits(made: Dashboard) -> Dashboard:
    made.with_row(row("Limits and walls"))
    made.with_panel(
        lines("Programs killed", "suffix: programs/s", "timeout: wall time. cpu: CPU time. alarm: the job's own time limit. "
              "disk: scratch full.", (f"sum by (cause) (rate(rs_kills_total{RATE}))", "{{cause}}")).min(0)
    ).with_panel(
        presence("Layers of the jail", "Present when every grader has the layer, absent when one lacks it.",
                 ("min by (layer) (rs_isolation_layer)", "{{layer}}"))
    ).with_panel(
        lines("Memory of a grader", "bytes", "Resident set of the worker; its jails are its children.",
              ('process_resident_memory_bytes{job="sandbox"}', "{{instance}}")).min(0)
    )  # fmt: skip
    return made


def make() -> Dashboard:
    made = board("grading", "Grading", "Labels, latencies and kills of the sandbox workers.")
    return _limits(_speed(_verdicts(_now(made))))
