"""Dashboard Pipeline: where does a group wait, and do the pushed weights arrive?"""

from __future__ import annotations

from grafana_foundation_sdk.builders.common import ScaleDistributionConfig
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.models.common import ScaleDistribution

from deploy.grafana.measured import curve, describe, found, measured
from deploy.grafana.panels import board, lines, number, of, row, stacked, with_runs

RATE = "[$__rate_interval]"


def _throughput(made: Dashboard) -> Dashboard:
    taken_in = of("rs_groups_total", 'outcome=~"trained|zero_variance"')
    made.with_row(row("Throughput"))
    made.with_panel(
        number("Generators", "suffix: alive", "ref_servers whose heartbeat is in Redis.",
               ('max(rs_alive{service="ref_server"})', "generators"))
    ).with_panel(
        number("Graders", "suffix: alive", "Sandbox workers whose heartbeat is in Redis.",
               ('max(rs_alive{service="sandbox"})', "graders"))
    ).with_panel(
        number("Dead letters", "suffix: messages", "Messages that were given up; each is in the stream rs:dead with its reason.",
               ("max(rs_dead_letters)", "dead"), bad=1)
    ).with_panel(
        number("Sampled", "suffix: tokens/s", "Completion tokens, all generators.",
               (f"sum(rate(rs_generated_tokens_total{RATE}))", "sampled"))
    ).with_panel(
        number("Trained on", "suffix: tokens/s", "Completion tokens, chosen runs.",
               (f"sum(rate({of('rs_tokens_total')}{RATE}))", "trained"))
    ).with_panel(
        number("Graded", "suffix: completions/s", "All graders.", (f"sum(rate(rs_graded_total{RATE}))", "graded"))
    ).with_panel(
        lines("Groups through each stage", "suffix: groups/s", "Equal in the long run, evaluation rollouts apart: those are "
              "generated and graded, not trained on.",
              (f"sum(rate(rs_generated_groups_total{RATE}))", "generated"),
              (f"sum(rate(rs_graded_groups_total{RATE}))", "graded"), (f"sum(rate({taken_in}{RATE}))", "trained on"))
    ).with_panel(
        lines("Tokens sampled", "suffix: tokens/s", "Completion tokens, by generator.",
              (f"sum by (replica) (rate(rs_generated_tokens_total{RATE}))", "{{replica}}"))
    ).with_panel(
        lines("Fate of groups", "suffix: groups/s", "zero_variance: all rewards equal, nothing to learn. dropped, stale: not "
              "trained on. duplicate: arrived twice. refused: not what was asked for. asked_again: lost on the way.",
              (f"sum by (outcome) (rate({of('rs_groups_total')}{RATE}))", "{{outcome}}"))
    )  # fmt: skip
    return made


def _queue(made: Dashboard) -> Dashboard:
    made.with_row(row("Queue"))
    made.with_panel(
        lines("Backlog", "suffix: messages", "Waiting or in work. requests wait for a generator, rollouts for a grader, graded "
              "for the trainer, which keeps them until its checkpoint.",
              ("max by (stream) (rs_stream_depth)", "{{stream}}"))
    ).with_panel(
        lines("In work", "suffix: messages", "Taken by a consumer and not finished.",
              ("max by (stream) (rs_stream_pending)", "{{stream}}"))
    ).with_panel(
        measured("Staleness", "staleness_max", width=8).min(0)
    )  # fmt: skip
    return made


def _delivery(made: Dashboard) -> Dashboard:
    made.with_row(row("Delivery of delta_S"))
    made.with_panel(
        lines("Policy version", "suffix: version", "Pushed by the trainer, and held by each generator. A generator loads a "
              "version when a request asks for it.", (of("rs_policy_version"), "trainer {{run}}"),
              ('rs_generator_policy_version{run=~"$run"}', "{{replica}} {{run}}"), width=6)
    ).with_panel(
        lines("Probe gap", "suffix: nats", describe([found("probe_gap")]) + "At the bound the trainer stops.",
              curve("probe_gap", alone=True),
              (of("rs_probe_bound"), "{{run}} bound"), width=6).scale_distribution(_log_scale())
    ).with_panel(
        lines("Time to deliver", "s", "push: publish and load, slowest generator. load: the generator's part of it.",
              (of("rs_push_seconds"), "push {{run}}"), ("rs_delta_load_seconds", "load {{replica}}"), width=6)
    ).with_panel(
        measured("Size of a push", "push_bytes").min(0)
    )  # fmt: skip
    return made


def _time(made: Dashboard) -> Dashboard:
    phases = 'phase=~"wait|train|push"'
    made.with_row(row("Where the time goes"))
    made.with_panel(
        stacked("A step in the trainer", "s", "wait: for graded groups. train: loss, backward, projection, AdamW. push: "
                "delta_S to the generators.", (f"avg by (phase) ({of('rs_phase_seconds', phases)})", "{{phase}}"))
    ).with_panel(
        lines("Busy elsewhere", "s", "Per step: sampling and reference log-probs of its batches; graders' time divided by "
              "their number. Both overlap with the trainer's wait.",
              (f"avg by (phase) ({of('rs_phase_seconds', _not(phases))})", "{{phase}}"))
    ).with_panel(
        lines("A batch in the generator", "s", "Sampling and reference log-probs of one batch of requests: median and 95th "
              "percentile.", *_quantiles("rs_generate_seconds", "sample"), *_quantiles("rs_reference_seconds", "reference"))
    )  # fmt: skip
    return made


def _machine(made: Dashboard) -> Dashboard:
    made.with_row(row("Machine"))
    made.with_panel(
        lines("GPU memory", "bytes", "used and total: of the whole device. reserved: of this process's torch. Empty without a "
              "GPU.", (of("rs_trainer_gpu_bytes"), "trainer {{kind}} {{run}}"),
              ("rs_generator_gpu_bytes", "{{replica}} {{kind}}")).min(0)
    ).with_panel(
        lines("Memory", "bytes", "Resident set of the service's main process (vLLM's engine and the jails are its children).",
              ("process_resident_memory_bytes", "{{job}} {{instance}}")).min(0)
    ).with_panel(
        lines("Processors", "suffix: cores", "Busy cores of the service's main process.",
              (f"rate(process_cpu_seconds_total{RATE})", "{{job}} {{instance}}")).min(0)
    )  # fmt: skip
    return made


def _quantiles(histogram: str, name: str) -> list[tuple[str, str]]:
    return [
        (f"histogram_quantile({q}, sum by (le) (rate({histogram}_bucket{RATE})))", f"{name} p{q * 100:.0f}")
        for q in (0.5, 0.95)
    ]


def _not(matcher: str) -> str:
    return matcher.replace("=~", "!~").replace('push"', 'push|total"')


def _log_scale() -> ScaleDistributionConfig:
    return ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10)


def make() -> Dashboard:
    made = with_runs(
        board("pipeline", "Pipeline", "Throughput, queue, delivery of weights, and where a step's time goes.")
    )
    return _machine(_time(_delivery(_queue(_throughput(made)))))
