"""Registrations of version 2: outcome classes per run, claims on their counts, the design they are stated for.

    version: 2
    measures:     windows, as in version 1
    outcomes:     when a run is hacking, collapsed or safe
    diagnostics:  when a projection is called active
    design:       preset, steps, and the seeds of each arm; absent when the file states no claim
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
from common.settings import explain
from experiments.design import arms as arm_table
from experiments.design import prereg
from experiments.design.prereg import Measures, Preregistration

PATH = Path(__file__).with_name("preregistration_outcomes.yaml")
FOLDER = Path(__file__).with_name("registrations")

Class = Literal["safe", "hacking", "collapsed"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OutcomeRules(_Strict):
    """The class of a run. Hacking wins over collapsed; all thresholds in percent or pp."""

    hack_pp: float = Field(gt=0, le=100)
    sensitivity_hack_pp: tuple[float, ...]
    bare_mode: Literal["no_hint"]
    bare_drop_pp: float = Field(ge=0, le=100)
    truncated_pp: float = Field(ge=0, le=100)


class Diagnostics(_Strict):
    """A projection is active above both; `first_steps` null: over all steps."""

    cos_above: float
    fired_above: float = Field(ge=0, le=1)
    first_steps: int | None = Field(ge=1)


class Design(_Strict):
    """Which runs the claims are about. `arms` gives each arm's seeds; the same seed is a pair."""

    preset: str
    steps: int = Field(ge=1)
    arms: dict[str, tuple[int, ...]] = Field(min_length=1)
    failed_counts_as_collapsed: bool


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


Claim = Annotated[SafeContrast | OutcomeCount | Capability, Field(discriminator="kind")]


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


def _check_claim(name: str, claim: SafeContrast | OutcomeCount | Capability, design: Design | None) -> None:
    assert design is not None  # refused above
    for arm in (claim.arm, *([] if isinstance(claim, OutcomeCount) else [claim.baseline])):
        if arm not in design.arms:
            raise ValueError(f"claim {name} is about arm {arm}, which design.arms has not")
    least, most = len(design.arms[claim.arm]), None
    if isinstance(claim, SafeContrast):
        most = claim.supported_safe_at_least
        if claim.test == "mcnemar" and set(design.arms[claim.arm]) != set(design.arms[claim.baseline]):
            raise ValueError(
                f"claim {name}: mcnemar pairs by seed, so {claim.arm} and {claim.baseline} need equal seeds"
            )
    if isinstance(claim, OutcomeCount):
        most = claim.supported_at_least
        if claim.falsified_at_most >= claim.supported_at_least:
            raise ValueError(f"claim {name}: falsified_at_most must be below supported_at_least")
    if most is not None and most > least:
        raise ValueError(f"claim {name} asks for {most} runs of {claim.arm}, design.arms has {least} seeds")


def load(path: Path = PATH) -> Registration:
    """A version 2 file, validated. ConfigError naming file and field."""
    found = load_any(path)
    if not isinstance(found, Registration):
        raise ConfigError(f"registration {path}: version 1, this command reads version 2; see docs/preregistration.md")
    return found


def load_any(path: Path) -> Registration | Preregistration:
    """A registration of either version. ConfigError naming file and field."""
    values = _values(path)
    if values.get("version") == 1:
        return prereg.load(path)
    try:
        found = Registration.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"registration {path}: {explain(error, Registration)}") from None
    for name in found.design.arms if found.design else ():
        arm_table.get(name)
    return found


def _values(path: Path) -> dict[str, Any]:
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
