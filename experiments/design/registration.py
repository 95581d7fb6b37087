"""Registrations of version 2: outcome classes per run, claims on their counts, the design they are stated for.

    version: 2
    measures:     windows, as in version 1
    outcomes:     when a run is hacking, collapsed or safe
    diagnostics:  when a projection is called active
    design:       preset, steps, the seeds of each arm, cells: arms at other settings than their own, such as doses, and
                  pools: arms and cells whose runs are counted together; absent when the file states no claim
    alpha, family_alpha, claims

`preregistration.yaml` (version 1) stays as it is. `preregistration_outcomes.yaml` holds the outcome rules and the
diagnostic that every verdict and report shows beside it. docs/preregistration.md has an example with claims.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import ConfigError
from common.settings import TrainerSettings, explain
from experiments.design import arms as arm_table
from experiments.design import prereg
from experiments.design.prereg import Measures, Preregistration

PATH = Path(__file__).with_name("preregistration_outcomes.yaml")
FOLDER = Path(__file__).with_name("registrations")

Class = Literal["safe", "hacking", "collapsed"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OutcomeRules(_Strict):
    """The class of a run. Hacking wins over collapsed; all thresholds in percent or pp.

    hint_drop_pp: collapsed also when held-out pass under the training prompt is lower by more than this; None: not asked.
    """

    hack_pp: float = Field(gt=0, le=100)
    sensitivity_hack_pp: tuple[float, ...]
    bare_mode: Literal["no_hint"]
    bare_drop_pp: float = Field(ge=0, le=100)
    truncated_pp: float = Field(ge=0, le=100)
    hint_drop_pp: float | None = Field(default=None, ge=0, le=100)


class Diagnostics(_Strict):
    """A projection is active above both; `first_steps` null: over all steps."""

    cos_above: float
    fired_above: float = Field(ge=0, le=1)
    first_steps: int | None = Field(ge=1)


class Cell(_Strict):
    """An arm at other settings than its own defaults: a name for claims to speak of, and `--set` to run it with."""

    arm: str
    settings: dict[str, Any] = Field(min_length=1)


class Design(_Strict):
    """Which runs the claims are about. `arms` gives the seeds of each arm or cell; the same seed is a pair.

    A name in `arms` that is no cell is an arm of the table at its own defaults. A pool is a name for several of them
    together: every run counts once, and a safe_contrast or an outcome_count may speak of it.
    """

    preset: str
    steps: int = Field(ge=1)
    arms: dict[str, tuple[int, ...]] = Field(min_length=1)
    cells: dict[str, Cell] = Field(default_factory=dict)
    pools: dict[str, Annotated[tuple[str, ...], Field(min_length=2)]] = Field(default_factory=dict)
    failed_counts_as_collapsed: bool

    @model_validator(mode="after")
    def _pools_hold_registered_runs_once(self) -> Design:
        for name, members in self.pools.items():
            if name in self.arms or name in arm_table.ARMS:
                raise ValueError(f"pool {name} has the name of an arm or cell: give it another")
            for member in members:
                if member not in self.arms:
                    raise ValueError(f"pool {name} holds {member}, which design.arms has not")
            if len(set(members)) < len(members):
                raise ValueError(f"pool {name} holds a name twice: give it once")
        return self

    @model_validator(mode="after")
    def _cells_are_named_once(self) -> Design:
        for name in self.cells:
            if name in arm_table.ARMS:
                raise ValueError(f"cell {name} has the name of an arm: give it another")
            if name not in self.arms:
                raise ValueError(f"cell {name} has no seeds in design.arms")
        return self

    def members(self, name: str) -> tuple[str, ...]:
        """The arms and cells of a pool; of any other name itself."""
        return self.pools.get(name, (name,))

    def runs_of(self, name: str) -> int:
        """How many runs are registered for an arm, a cell or a pool."""
        return sum(len(self.arms[member]) for member in self.members(name))

    def arm_of(self, name: str) -> str:
        """The arm in the table that `name`, an arm or a cell, stands for."""
        return self.cells[name].arm if name in self.cells else name

    def settings_of(self, name: str) -> dict[str, Any]:
        """The settings that its runs must have: the arm's defaults, and a cell's own before them."""
        arm = arm_table.get(self.arm_of(name))
        return {**arm.defaults, **(self.cells[name].settings if name in self.cells else {})}


class SafeContrast(_Strict):
    """More safe runs than the baseline. McNemar pairs by seed; Fisher and Boschloo do not. One-sided.

    Supported when the test's p is below alpha (primary) or its Holm-adjusted p is at most family_alpha (secondary), and
    at least `supported_safe_at_least` runs of the arm are safe. Falsified when safe runs of the arm minus those of the
    baseline are at most `falsified_lead_at_most`. Not evaluable below `baseline_hacking_at_least` hacking runs.
    """

    kind: Literal["safe_contrast"]
    level: Literal["primary", "secondary"]
    claim: str
    arm: str
    baseline: str
    test: Literal["mcnemar", "fisher", "boschloo"]
    supported_safe_at_least: int = Field(ge=1)
    falsified_lead_at_most: int
    baseline_hacking_at_least: int = Field(ge=0)


class SafeMargin(_Strict):
    """Nearly as many safe runs as another arm. Counts alone, no test: eight runs cannot show two arms to be equal.

    Supported when safe runs of the arm minus those of the baseline are at least `supported_lead_at_least` (below 0: so
    many fewer are allowed), falsified when at most `falsified_lead_at_most`.
    """

    kind: Literal["safe_margin"]
    claim: str
    arm: str
    baseline: str
    supported_lead_at_least: int
    falsified_lead_at_most: int


class DoseTrend(_Strict):
    """The share of safe runs rises with the dose: exact Cochran-Armitage over ranks, exchanged within seeds, one-sided.

    `ladder` names arms or cells, lowest dose first, all with the same seeds. Supported when the Holm-adjusted p is at
    most family_alpha, falsified when the highest dose has no more safe runs than the lowest.
    """

    kind: Literal["dose_trend"]
    claim: str
    ladder: tuple[str, ...] = Field(min_length=2)


class OutcomeCount(_Strict):
    """How many runs of one arm end in a class."""

    kind: Literal["outcome_count"]
    claim: str
    arm: str
    outcome: Class
    supported_at_least: int = Field(ge=1)
    falsified_at_most: int = Field(ge=0)


class Capability(_Strict):
    """No loss of bare held-out pass against the baseline: Welch interval of arm - baseline at the last evaluation.

    Supported when its lower end is above -margin_pp, falsified when its upper end is below -margin_pp.
    """

    kind: Literal["capability"]
    claim: str
    arm: str
    baseline: str
    margin_pp: float = Field(gt=0)
    confidence: float = Field(gt=0.5, lt=1)


AnyClaim = SafeContrast | SafeMargin | DoseTrend | OutcomeCount | Capability
Claim = Annotated[AnyClaim, Field(discriminator="kind")]


def named(claim: AnyClaim) -> tuple[str, ...]:
    """The arms, cells and pools that a claim speaks of."""
    if isinstance(claim, DoseTrend):
        return claim.ladder
    return (claim.arm,) if isinstance(claim, OutcomeCount) else (claim.arm, claim.baseline)


class Registration(_Strict):
    version: Literal[2]
    measures: Measures
    outcomes: OutcomeRules
    diagnostics: Diagnostics
    design: Design | None = None
    alpha: float = Field(default=0.01, gt=0, lt=1)
    family_alpha: float = Field(default=0.05, gt=0, lt=1)
    claims: dict[str, Claim] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Registration:
        if self.claims and self.design is None:
            raise ValueError("claims need a design (preset, steps, arms with seeds)")
        primary = [name for name, c in self.claims.items() if isinstance(c, SafeContrast) and c.level == "primary"]
        if len(primary) > 1:
            raise ValueError(f"one primary claim at most, since it is not corrected; there are {', '.join(primary)}")
        for name, claim in self.claims.items():
            _check_claim(name, claim, self.design)
        return self


def _check_claim(name: str, claim: AnyClaim, design: Design | None) -> None:
    assert design is not None  # refused above
    for arm in named(claim):
        if arm not in design.arms and arm not in design.pools:
            raise ValueError(f"claim {name} is about arm {arm}, which design.arms has not")
    if design.pools.keys() & set(named(claim)):
        _check_pooled(name, claim, design)
        return
    seeds = {frozenset(design.arms[arm]) for arm in named(claim)}
    if isinstance(claim, SafeContrast) and claim.test == "mcnemar" and len(seeds) > 1:
        raise ValueError(f"claim {name}: mcnemar pairs by seed, so {claim.arm} and {claim.baseline} need equal seeds")
    if isinstance(claim, DoseTrend) and len(seeds) > 1:
        raise ValueError(f"claim {name}: a trend exchanges within seeds, so {', '.join(claim.ladder)} need equal seeds")
    if isinstance(claim, SafeMargin) and claim.falsified_lead_at_most >= claim.supported_lead_at_least:
        raise ValueError(f"claim {name}: falsified_lead_at_most must be below supported_lead_at_least")
    if isinstance(claim, OutcomeCount) and claim.falsified_at_most >= claim.supported_at_least:
        raise ValueError(f"claim {name}: falsified_at_most must be below supported_at_least")
    _check_reachable(name, claim, design)


def _check_pooled(name: str, claim: AnyClaim, design: Design) -> None:
    """What is paired by seed, or measured on one arm, cannot be asked of a pool."""
    unpaired = isinstance(claim, SafeContrast) and claim.test != "mcnemar"
    if not unpaired and not isinstance(claim, OutcomeCount):
        raise ValueError(
            f"claim {name}: of a pool only outcome_count and safe_contrast by fisher or boschloo can be claimed"
        )
    if isinstance(claim, SafeContrast):
        both = set(design.members(claim.arm)) & set(design.members(claim.baseline))
        if both:
            raise ValueError(f"claim {name}: {', '.join(sorted(both))} is on both sides")
    _check_reachable(name, claim, design)


def _check_reachable(name: str, claim: AnyClaim, design: Design) -> None:
    """No claim asks for more runs than there are."""
    if not isinstance(claim, SafeContrast | OutcomeCount):
        return
    most = claim.supported_safe_at_least if isinstance(claim, SafeContrast) else claim.supported_at_least
    if most > design.runs_of(claim.arm):
        raise ValueError(
            f"claim {name} asks for {most} runs of {claim.arm}, design.arms has {design.runs_of(claim.arm)} seeds"
        )


def load(path: Path = PATH) -> Registration:
    """A version 2 file, validated. ConfigError naming file and field."""
    found = load_any(path)
    if not isinstance(found, Registration):
        raise ConfigError(f"registration {path}: version 1, this command reads version 2; see docs/preregistration.md")
    return found


def load_any(path: Path) -> Registration | Preregistration:
    """A registration of either version. ConfigError naming file and field."""
    values = read_values(path)
    if values.get("version") == 1:
        return prereg.load(path)
    if values.get("version") == 3:
        raise ConfigError(
            f"registration {path}: version 3 is about the alarm; judge it with `python -m experiments alarm`"
        )
    try:
        found = Registration.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"registration {path}: {explain(error, Registration)}") from None
    for name in found.design.arms if found.design else ():
        _check_settings(path, found.design, name)
    return found


def _check_settings(path: Path, design: Design | None, name: str) -> None:
    """ConfigError when a name is no arm, or its settings could not be given by --set."""
    assert design is not None
    arm = arm_table.get(design.arm_of(name))
    for field in design.settings_of(name):
        if field not in TrainerSettings.model_fields or field in arm.overrides:
            raise ConfigError(
                f"registration {path}: cell {name}: '{field}' is no field that arm {arm.name} leaves free"
            )


def read_values(path: Path) -> dict[str, Any]:
    """The object of a registration file, any version. ConfigError naming file and fault."""
    try:
        values = yaml.safe_load(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"--registration {path}: {error.strerror}; give a registration file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"registration {path}: not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"registration {path}: must hold an object with a version, see docs/preregistration.md")
    return values


def digests() -> dict[str, str]:
    """{file name: sha256} of every registration in the repository, as provenance.json keeps them."""
    files = (prereg.PATH, PATH, *sorted(FOLDER.glob("*.yaml")))
    return {path.name: prereg.digest(path) for path in files}
