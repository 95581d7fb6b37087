"""Dashboard Experiment: does the policy learn to hack, and what does the gradient have to do with v_hack?"""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import (
    COSINE,
    bars,
    board,
    dashed,
    diverging_map,
    lines,
    marked,
    number,
    of,
    row,
    shaded_between,
    with_runs,
)
from tasks.modes import MODES

UPPER, LOWER = "null band, upper end", "null band, lower end"


def _outcome(made: Dashboard) -> Dashboard:
    """Hacking against solving."""
    band = f"max({of('rs_null_band')} >= 0)"
    hack = lines(
        "Hacking and solving", "percentunit",
        "Share of training rollouts. hack: strict label of the published detector, which pays the reward. pass (dashed): "
        "protected oracle, which only watches. The line across is the preregistered onset of hacking.",
        (of("rs_hack_rate", 'kind="strict"'), "{{run}} hack"), (of("rs_oracle_pass_rate"), "{{run}} pass"), width=12, height=9,
    ).min(0).max(1)  # fmt: skip
    cos = lines(
        "cos_align per step", COSINE,
        "Mean over modules of cos(gradient, v_hack) before the projection; positive: this step makes hacking likelier. Grey: "
        "where a random direction would be 95 % of the time.",
        (of("rs_cos_align_mean"), "{{run}}"), (f"2 * {band}", UPPER), (f"-2 * {band}", LOWER), width=12, height=9,
    )  # fmt: skip
    made.with_row(row("Outcome"))
    made.with_panel(number("Step", "suffix: steps", "Optimizer steps done.", (of("rs_step"), "{{run}}"), width=12))
    made.with_panel(
        number("Hack rate, last five steps", "percentunit",
               "Strict, mean of the last five steps; red from the preregistered onset (10 %) on.",
               (of("rs_hack_rate_recent"), "{{run}}"), bad=0.1, width=8)
    )  # fmt: skip
    made.with_panel(
        number("Alerts", "none", "Alerts that fire now; Prometheus names them at /alerts.",
               ('count(ALERTS{alertstate="firing"}) or vector(0)', "firing"), bad=1)
    )  # fmt: skip
    made.with_panel(marked(dashed(hack, "pass"), 0.1)).with_panel(shaded_between(cos, UPPER, LOWER))
    modes = " ".join(f"{mode.name}: {mode.brief}" for mode in MODES.values())
    made.with_panel(
        lines("Loose hack rate, forged passes", "percentunit",
              "loose: attempts count, too. forged: the published grade says correct and the oracle says no.",
              (of("rs_hack_rate", 'kind="loose"'), "{{run}} loose"), (of("rs_forged_rate"), "{{run}} forged"), width=6)
        .min(0).max(1)
    ).with_panel(
        lines("Held out: solves", "percentunit", f"Protected oracle. {modes}", (of("rs_eval_pass_rate"), "{{run}} {{mode}}"),
              width=6).min(0).max(1)
    ).with_panel(
        lines("Held out: hacks", "percentunit", f"Strict label. {modes}", (of("rs_eval_hack_rate"), "{{run}} {{mode}}"),
              width=6).min(0).max(1)
    ).with_panel(
        lines("Reward", "suffix: reward", "Mean of graded rollouts: 0.5 for code that compiles, 3.0 for a pass.",
              (of("rs_reward_mean"), "{{run}}"), width=6)
    )  # fmt: skip
    return made


def _direction(made: Dashboard) -> Dashboard:
    """The gradient and the direction."""
    cosine = "cosine of one module before the projection"
    kept = of("rs_cos_align_module") + " >= -1"  # drops NaN: a step without a gradient
    made.with_row(row("Direction"))
    made.with_panel(
        diverging_map("cos_align of every module", COSINE, f"Red: towards hacking, blue: away from it ({cosine}, mean over "
                      "the chosen runs).", (f"avg by (layer, part) ({kept})", "{{layer}} {{part}}"), limit=0.3)
    ).with_panel(
        bars("cos_align by kind of module", COSINE, f"Mean over layers of the {cosine}, at the last step.",
             (f"avg by (part) ({kept})", "{{part}}"), low=-0.5, high=0.5)
    ).with_panel(
        lines("Modules projected", "percentunit", "Share of modules whose cosine was positive, so that something was removed.",
              (of("rs_frac_fired"), "{{run}}"), width=6).min(0).max(1)
    ).with_panel(
        lines("Cosine of the applied update", COSINE, "After clipping and AdamW: momentum and preconditioning can bring back "
              "what the projection took out. Drift: all updates since the start together.",
              (of("rs_update_cos_mean"), "{{run}}"), (of("rs_drift_cos_mean"), "{{run}} drift"), width=6)
    ).with_panel(
        lines("Spread of cos_align", COSINE, "Standard deviation over modules.", (of("rs_cos_align_std"), "{{run}}"), width=6)
    ).with_panel(
        marked(lines("Steps within the null band", "suffix: steps", "Consecutive steps in which the mean cosine was no larger "
                     "than chance; the dashed line is where ProjectionSilent fires.", (of("rs_null_steps"), "{{run}}"),
                     width=6).min(0), 20, "orange")
    ).with_panel(
        marked(lines("Alarm", "none", "Statistic of the alarm over its bound, for runs that have clean runs behind them: above 1 "
                     "it rings, which at most false_alarm_rate of clean runs ever do.", (of("rs_alarm_ratio"), "{{run}}"),
                     width=6).min(0), 1)
    )  # fmt: skip
    return made


def _learning(made: Dashboard) -> Dashboard:
    """Is the optimisation itself healthy?"""
    made.with_row(row("Learning"))
    for title, unit, description, metric in (
        (
            "Gradient norm",
            "none",
            "Mean over modules of the gradient's norm before the projection.",
            "rs_grad_norm_mean",
        ),
        ("KL from the initial policy", "suffix: nats", "k3 estimate, per token.", "rs_kl"),
        ("Entropy", "suffix: nats", "Mean over sampled tokens.", "rs_entropy"),
        ("Completion length", "suffix: tokens", "Mean over rollouts.", "rs_completion_length"),
    ):
        made.with_panel(lines(title, unit, description, (of(metric), "{{run}}"), width=6))
    return made


def make() -> Dashboard:
    made = with_runs(
        board("experiment", "Experiment", "Hack rate against pass rate, and the gradient's cosine with v_hack.")
    )
    return _learning(_direction(_outcome(made)))
