"""Where training has taken delta_S along v_hack, at a run's newest checkpoint.

    drift = mean over modules of  −delta_S[m]·v[m] / ‖delta_S[m]‖

The sign is that of a gradient: positive means that delta_S has moved to where hacks are likelier.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ConfigError
from experiments.analysis.measures import Summary
from experiments.analysis.run_files import Run, direction_file

if TYPE_CHECKING:
    from rankspace.direction import Direction


@dataclass(frozen=True)
class Place:
    """Where one run is. `step`: of the checkpoint; `drift`: mean over modules; `norm`: of all delta_S."""

    run: Run
    summary: Summary
    step: int
    drift: float
    norm: float


def line(p: Place) -> str:
    """'-0.413  hack   0.0%  pass  61.8%  smollm-projected-s0, step 150'."""
    rates = f"hack {100 * p.summary.hack:5.1f}%  pass {100 * p.summary.passed:5.1f}%"
    return f"{p.drift:+.3f}  {rates}  {p.run.run_id}, step {p.step}"


def load(path: Path) -> Direction:
    """A v_hack with one vector per module. ConfigError when there is none, or it is a subspace."""
    from rankspace import RankspaceError, load_direction

    try:
        direction: Direction = load_direction(path)
    except RankspaceError as error:
        raise ConfigError(f"--v-hack: {error}") from None
    if direction.vectors.ndim != 1:
        raise ConfigError(f"--v-hack {path}: holds several vectors per module; give a direction with one")
    return direction


def place(run: Run, summary: Summary, direction: Direction) -> Place:
    """Where `run` was at its newest checkpoint.

    Raises:
        ConfigError: the run has other modules than the direction, was trained on other weights, or its checkpoint is
            damaged; one line.
    """
    from rankspace import Layout, RankspaceError, drift_cosine
    from rankspace.run_checkpoint import of_run

    try:
        saved = of_run(run.path)
    except RankspaceError as error:
        raise ConfigError(
            f"{error}; drift reads the newest checkpoint: delete its folder to take the one before"
        ) from None
    made_from = direction.metadata.get("fingerprint")
    if made_from and saved.fingerprint and made_from != saved.fingerprint:
        raise ConfigError(
            f"{run.path}: trained on other weights than the direction was extracted from; give its --v-hack"
        )
    if saved.modules != direction.modules:
        raise ConfigError(f"{run.path}: its modules are not those of the direction; give the run's --v-hack")
    cosines = drift_cosine(saved.flat, direction.vectors, Layout.of(saved.modules))
    return Place(run, summary, saved.trained["step"], float(cosines.mean()), float(saved.flat.norm()))


HEAD = ["arm", "seed", "finished", "step", "drift", "norm", "hack_strict", "pass_oracle"]


def row(p: Place) -> list[object]:
    """A line of drift.csv; rates are means over the preregistered final window."""
    numbers = (p.drift, p.norm, p.summary.hack, p.summary.passed)
    return [p.run.arm, p.run.seed, int(p.run.finished), p.step, *(f"{x:.6g}" for x in numbers)]


def own_direction(runs: list[Run]) -> Path:
    """The v_hack of these runs: their own copies, all of the same content, else the file that their settings name."""
    files = [direction_file(run.path, run.config) for run in runs if (run.direction or {}).get("kind") == "v_hack"]
    found = {_content(path): path for path in files if path is not None}
    if len(found) != 1:
        what = "name no v_hack" if not found else f"have several ({', '.join(sorted(map(str, found.values())))})"
        raise ConfigError(f"these runs {what}; give --v-hack FILE")
    return next(iter(found.values()))


def _content(path: Path) -> bytes | Path:
    """Its sha256; a file that is not there is told apart by its name."""
    return hashlib.sha256(path.read_bytes()).digest() if path.is_file() else path
