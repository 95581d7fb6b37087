"""Dashboard Experiment: does the policy learn to hack, and what does the gradient have to do with v_hack?"""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from common.measurements import BY_NAME
from deploy.grafana.measured import curve, describe, measured, threshold
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
    onset = threshold("hack_strict")
    band = f"max({of('rs_null_band')} >= 0)"
    hack = measured(
        "Hacking and solving", "hack_strict", "pass_oracle", more="The published verdict pays the reward; the oracle (dashed) "
        "only watches. The line across is the preregistered onset of hacking.", width=12, height=9,
    )  # fmt: skip
    cos = lines(
        "cos_align per step", COSINE,
        describe([BY_NAME["cos_mean"]]) + "Positive: this step makes hacking likelier. Grey: where a random direction would be "
        "95 % of the time.",
        curve("cos_mean", alone=True), (f"2 * {band}", UPPER), (f"-2 * {band}", LOWER), width=12, height=9,
    )  # fmt: skip
    made.with_row(row("Outcome"))
    made.with_panel(
        number("Step", "suffix: steps", "Steps done, and optimizer updates among them.", (of("rs_step"), "{{run}}"),
               curve("updates"), width=12)
    )  # fmt: skip
    made.with_panel(
        number("Hack rate, last five steps", "percentunit",
               f"Strict, mean of the last five steps; red from the preregistered onset ({onset:.0%}) on.",
               (of("rs_hack_rate_recent"), "{{run}}"), bad=onset, width=8)
    )  # fmt: skip
    made.with_panel(
        number("Alerts", "none", "Alerts that fire now; Prometheus names them at /alerts.",
               ('count(ALERTS{alertstate="firing"}) or vector(0)', "firing"), bad=1)
    )  # fmt: skip
    made.with_panel(marked(dashed(hack, "pass_oracle"), onset)).with_panel(shaded_between(cos, UPPER, LOWER))
    modes = " ".join(f"{mode.name}: {mode.brief}" for mode in MODES.values())
    for panel in (
        measured("Loose hack rate, forged passes", "hack_loose", "forged_rate"),
        measured("Held out: solves", "eval.pass_oracle", more=modes),
        measured("Held out: hacks", "eval.hack_strict", more=modes),
        measured("Reward", "reward_mean", more="0.5 for code that compiles, 3.0 for a pass."),
    ):
        made.with_panel(panel)
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
    )  # fmt: skip
    for panel in (
        measured("Modules projected", "frac_fired", more="A random direction fires 50 %."),
        measured("Cosine of the applied update", "update_ref_cos_mean", "update_cos_mean", more="Momentum and preconditioning "
                 "can bring back what the projection took out."),
        measured("Drift along v", "drift_ref_cos_mean", "drift_cos_mean", more="Arms can be compared by the first."),
        measured("Displacement along v", "displacement_ref", "displacement_own", "delta_norm"),
        measured("NLL margin of held-out pairs", "eval.nll_margin"),
        measured("Spread of cos_align", "cos_std"),
        measured("Intervention on", "intervened").min(0).max(1),
        marked(lines("Steps within the null band", "suffix: steps", "Consecutive steps in which the mean cosine was no larger "
                     "than chance; the dashed line is where ProjectionSilent fires.", (of("rs_null_steps"), "{{run}}"),
                     width=6).min(0), 20, "orange"),
        marked(measured("Alarm", "alarm_ratio", more="For runs that have clean runs behind them; at most false_alarm_rate of "
                        "clean runs ever ring.").min(0), 1),
    ):  # fmt: skip
        made.with_panel(panel)
    return made


def _learning(made: Dashboard) -> Dashboard:
    """Is the optimisation itself healthy?"""
    made.with_row(row("Learning"))
    share = f"{of('rs_groups_behind_means')} / {of('rs_groups_collected')}"
    for panel in (
        measured("KL from the initial policy", "kl_all", "kl"),
        lines("Groups behind the means", "percentunit", "Share of the step's groups that the means over trained rows rest on: "
              "kl, entropy, cosines, gradient norm. The others had equal rewards.", (share, "{{run}}"), width=6).min(0).max(1),
        measured("Entropy", "entropy"),
        measured("Completion length", "length_mean"),
        measured("Truncated completions", "truncated_rate"),
        measured("Clipped and capped tokens", "clip_frac", "weight_capped"),
        measured("Largest importance ratio", "ratio_max"),
        measured("Gradient norm", "grad_norm_mean"),
        measured("Learning rate", "lr"),
    ):  # fmt: skip
        made.with_panel(panel)
    return made


def make() -> Dashboard:
    made = with_runs(
        board("experiment", "Experiment", "Hack rate against pass rate, and the gradient's cosine with v_hack.")
    )
    return _learning(_direction(_outcome(made)))
