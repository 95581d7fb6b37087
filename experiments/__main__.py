"""python -m experiments COMMAND: run arms, sweep them, and turn the runs into an answer.

  demo          vanilla and projected on this machine, from nothing to a report
  run           one arm, one seed                 --arm A --seed N --preset P [--set field=value]
  sweep         arms x seeds, resumable           --grid field=value,value: also x values
  arms          every arm, and what it tells
  presets       every preset
  model         bring a model here: hub name, FILE.gguf or folder
  samples       what a model writes before training, graded: base rates, and material for pairs
  prepare       model, direction and settings files for services that run elsewhere
  status        services that run, and a line for every run
  view          every completion in the browser: filter, search, both verdicts, tokens
  measure-cos   how far the completions of one step point along v_hack, one by one
  drift         where each run's delta_S has gone along v_hack, against how much it hacks
  watch         does a run leave what clean runs do? A line a run; --calibrate makes the file of clean runs
  alarm         what the alarm is worth on registered runs: false alarms, runs caught, lead
  report        HTML, Markdown, figures, LaTeX table
  why           dose, time and place: figures and tables of a registration with doses, cosines between directions
  verdict       every preregistered claim: supported, falsified, inconclusive, not evaluable
  keep          finished runs as small files to be committed, which the commands above read too
  missing       registered runs that are still to be made, as sweeps
  next-preset   the decision branch: did vanilla learn to hack, and what is next
  completion    the shell function that completes all of these (bash, zsh)

`python -m experiments COMMAND --help` explains one of them.
"""

from __future__ import annotations

import sys

from common import cli
from experiments.options import PARSERS

# Imported only when asked for, so that --help answers at once.
COMMANDS = {
    "demo": "experiments.demo",
    "run": "experiments.launch.run",
    "sweep": "experiments.launch.sweep",
    "model": "experiments.launch.model",
    "samples": "experiments.launch.samples",
    "arms": "experiments.design.list_arms",
    "presets": "experiments.design.list_presets",
    "prepare": "experiments.launch.prepare",
    "status": "experiments.status",
    "view": "experiments.viewer.serve",
    "measure-cos": "experiments.viewer.completion_cos",
    "drift": "experiments.report.drift_page",
    "watch": "experiments.analysis.watch",
    "alarm": "experiments.report.alarm_page",
    "report": "experiments.report.build",
    "why": "experiments.report.why",
    "verdict": "experiments.analysis.verdict",
    "keep": "experiments.analysis.keep",
    "missing": "experiments.analysis.missing",
    "next-preset": "experiments.analysis.next_preset",
    "completion": "experiments.completion",
}


def main(argv: list[str]) -> int:
    """Dispatch; exit code 0 done, 2 for what the user can put right."""
    return cli.dispatch(__doc__ or "", "python -m experiments", COMMANDS, argv, PARSERS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
