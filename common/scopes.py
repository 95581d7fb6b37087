"""What each settings field decides. Resuming, comparing, preparing and presets derive their lists of fields from it.

A field is written with its scope, `lr: Science[float] = ...`; a class with a field of no scope cannot be made.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Scope(Enum):
    """What a field decides. Resuming, comparing, preparing and presets take their lists of fields from it (`fields`)."""

    SCIENCE = "science"  # the result
    INPUT = "input"  # the path of a file whose content decides, not its path; a resumed run must have the same
    NAME = "name"  # which run it is
    PLACE = "place"  # addresses, credentials and names of processes
    MACHINE = "machine"  # what the hardware needs
    BOOKKEEPING = "bookkeeping"  # what is kept and watched, and how long is waited


V = TypeVar("V")
Science = Annotated[V, Scope.SCIENCE]
Input = Annotated[V, Scope.INPUT]
Name = Annotated[V, Scope.NAME]
Place = Annotated[V, Scope.PLACE]
Machine = Annotated[V, Scope.MACHINE]
Bookkeeping = Annotated[V, Scope.BOOKKEEPING]


class Settings(BaseModel):
    """Frozen, typed, no unknown fields, and a scope on each. TypeError for a class with a field of none or of two."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, values: Any) -> Any:
        """`steps: yes` is a slip, not one step."""
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if (
                isinstance(value, bool)
                and field is not None
                and bool not in (field.annotation, *get_args(field.annotation))
            ):
                raise ValueError(f"field '{name}': true and false are no value for it (got {value})")
        return values

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        for name, field in cls.model_fields.items():
            if sum(isinstance(mark, Scope) for mark in field.metadata) != 1:
                raise TypeError(f"{cls.__name__}.{name} needs one scope: write Science[...], Machine[...] or another")


def fields(kind: type[Settings], *scopes: Scope) -> frozenset[str]:
    """Names of the fields of `kind` that have one of `scopes`."""
    return frozenset(
        name for name, field in kind.model_fields.items() if any(mark in scopes for mark in field.metadata)
    )
