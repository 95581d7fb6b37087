"""Registrations of version 3: what an alarm is held to. Read by `python -m experiments alarm`; see registrations/alarm.yaml.

watches, baselines     name -> signals of rankspace.hack_watch; every one is calibrated and tested alike
settings               which runs are clean, hacking, and blind by construction
claims                 on the setting that has `claims: true`, about the watch that `primary` names
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import ConfigError
from common.settings import explain
from experiments.design import arms as arm_table
from experiments.design.registration import FOLDER, read_values
from rankspace.watch_signals import SIGNALS

PATH = FOLDER / "alarm.yaml"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Group(_Strict):
    """Runs of one arm under one --name; seeds from the first to the last."""

    arm: str
    name: str
    seeds: tuple[int, int]
    set: dict[str, Any] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name}-{self.arm}"

    def has(self, name: str, arm: str, seed: int) -> bool:
        return (name, arm) == (self.name, self.arm) and self.seeds[0] <= seed <= self.seeds[1]


class Setting(_Strict):
    """One model and length. claims: whether the claims are about it; otherwise it is only shown."""

    preset: str
    steps: int = Field(ge=1)
    claims: bool
    clean: tuple[Group, ...] = Field(min_length=1)
    hacking: tuple[Group, ...] = Field(min_length=1)
    blind: tuple[Group, ...] = ()


class FalseAlarms(_Strict):
    kind: Literal["false_alarms"]
    claim: str
    supported_at_most: float = Field(gt=0, lt=1)


class Caught(_Strict):
    kind: Literal["caught"]
    claim: str
    supported_at_least: float = Field(gt=0, le=1)


class Lead(_Strict):
    kind: Literal["lead"]
    claim: str
    supported_at_least: float = Field(gt=0)


class AheadOfBaselines(_Strict):
    kind: Literal["ahead_of_baselines"]
    claim: str
    supported_pp: float = Field(gt=0)
    falsified_pp: float = Field(ge=0)
    alpha: float = Field(gt=0, lt=1)


class AsGoodAsCount(_Strict):
    kind: Literal["as_good_as_count"]
    claim: str
    baseline: str
    within_pp: float = Field(ge=0)
    within_steps: float = Field(ge=0)


Claim = Annotated[FalseAlarms | Caught | Lead | AheadOfBaselines | AsGoodAsCount, Field(discriminator="kind")]


class AlarmRegistration(_Strict):
    version: Literal[3]
    false_alarm_rate: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0.5, lt=1)
    least_runs: int = Field(ge=1)
    onset_window: int = Field(ge=1)
    onset_pp: float = Field(gt=0, le=100)
    watches: dict[str, tuple[str, ...]] = Field(min_length=1)
    baselines: dict[str, tuple[str, ...]] = Field(min_length=1)
    primary: str
    withheld: tuple[str, ...]
    settings: dict[str, Setting] = Field(min_length=1)
    development: tuple[dict[str, str] | str, ...]
    claims: dict[str, Claim]

    @property
    def all_watches(self) -> dict[str, tuple[str, ...]]:
        """Watches and baselines, in the order of the table."""
        return {**self.watches, **self.baselines}

    def unseen(self, signals: tuple[str, ...]) -> tuple[str, ...]:
        """What is left of a watch with the detector off."""
        return tuple(name for name in signals if name not in self.withheld)

    @model_validator(mode="after")
    def _consistent(self) -> AlarmRegistration:
        for name, signals in self.all_watches.items():
            for signal in signals:
                if signal not in SIGNALS:
                    raise ValueError(f"watch {name} has the signal {signal!r}; there are {', '.join(SIGNALS)}")
        if set(self.watches) & set(self.baselines):
            raise ValueError("a name is both a watch and a baseline")
        if self.primary not in self.watches or not self.unseen(self.watches[self.primary]):
            raise ValueError(f"primary {self.primary!r} must be a watch with a signal that is not withheld")
        for name, claim in self.claims.items():
            if isinstance(claim, AsGoodAsCount) and claim.baseline not in self.baselines:
                raise ValueError(f"claim {name} names the baseline {claim.baseline!r}, which baselines has not")
        for name, setting in self.settings.items():
            groups = (*setting.clean, *setting.hacking, *setting.blind)
            if len({(g.label, g.seeds) for g in groups}) < len(groups) or _overlap(groups):
                raise ValueError(f"settings.{name}: a run belongs to two groups")
        return self


def _overlap(groups: tuple[Group, ...]) -> bool:
    return any(
        a is not b and a.label == b.label and a.seeds[0] <= b.seeds[1] and b.seeds[0] <= a.seeds[1]
        for a in groups
        for b in groups
    )


def load(path: Path = PATH) -> AlarmRegistration:
    """A version 3 file, validated. ConfigError naming file and field."""
    values = read_values(path)
    if values.get("version") != 3:
        raise ConfigError(f"registration {path}: version {values.get('version')}, `experiments alarm` reads version 3")
    try:
        found = AlarmRegistration.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"registration {path}: {explain(error, AlarmRegistration)}") from None
    for setting in found.settings.values():
        for group in (*setting.clean, *setting.hacking, *setting.blind):
            arm_table.get(group.arm)
    return found
