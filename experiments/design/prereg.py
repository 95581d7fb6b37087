"""The preregistration file, read strictly and hashed. `digest()` goes into every run before its first step."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import ConfigError
from common.settings import explain

PATH = Path(__file__).with_name("preregistration.yaml")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measures(_Strict):
    """How final rates and onset are read off a trajectory."""

    window_steps: int = Field(ge=1)
    window_share: float = Field(gt=0, le=1)
    onset_window: int = Field(ge=1)
    onset_pp: float = Field(gt=0, le=100)
    definitions: dict[str, str]


class Suppression(_Strict):
    """H1: a lower hack rate than the baseline at about the same pass rate."""

    kind: Literal["suppression"]
    claim: str
    arm: str
    baseline: str
    supported_gap_pp: float
    pass_within_pp: float
    falsified_gap_pp: float
    falsified_matched_drop_pp: float
    falsified_sem: float
    baseline_hack_pp: float
    min_seeds: int = Field(ge=2)


class Beats(_Strict):
    """H3 and the questions: a lower hack rate than a rival at matched pass rate."""

    kind: Literal["beats"]
    claim: str
    arm: str
    baseline: str
    falsified_sem: float
    reference: str
    reference_hack_pp: float
    min_seeds: int = Field(ge=2)


class Emergence(_Strict):
    """H4: the arm hacks more than a threshold by a given step."""

    kind: Literal["emergence"]
    claim: str
    arm: str
    hack_above_pp: float
    steps: int = Field(ge=1)
    min_seeds: int = Field(ge=1)


Claim = Annotated[Suppression | Beats | Emergence, Field(discriminator="kind")]


class Preregistration(_Strict):
    version: Literal[1]
    measures: Measures
    hypotheses: dict[str, Claim]
    questions: dict[str, Claim] = Field(default_factory=dict)

    @property
    def claims(self) -> dict[str, Claim]:
        """Hypotheses, then questions."""
        return {**self.hypotheses, **self.questions}


def digest(path: Path = PATH) -> str:
    """sha256 of the file's bytes, hex. ConfigError when it cannot be read."""
    return hashlib.sha256(_read(path)).hexdigest()


def load(path: Path = PATH) -> Preregistration:
    """The file, validated. ConfigError naming file and field when it is not a preregistration."""
    try:
        values = yaml.safe_load(_read(path))
    except yaml.YAMLError as error:
        raise ConfigError(f"preregistration {path}: not YAML ({str(error).splitlines()[0]})") from None
    try:
        return Preregistration.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"preregistration {path}: {explain(error, Preregistration)}") from None


def _read(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"preregistration {path}: {error.strerror}; restore the file from git") from None
