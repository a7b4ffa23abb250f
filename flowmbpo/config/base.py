"""The base of every config: frozen, and closed to unknown keys."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class FrozenConfig(BaseModel):
    """An immutable set of options. Unknown keys are refused; derived values are properties."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


def _path_part(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", value):
        raise ValueError(f"'{value}' names a folder: use letters, digits, '.', '_', '+' and '-' only")
    return value


FolderName = Annotated[str, AfterValidator(_path_part)]
"""Text that can be one part of a path, and name no other place than its folder."""
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]
Activation = Literal["mish", "silu"]
Units = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


def check_solved_units(solved_units: Units | None, units: Units, *, solves: bool) -> None:
    """Raises ValueError where `solved_units` cannot stand for widths that would be solved from `units`."""
    if solved_units is None:
        return
    if not solves:
        raise ValueError(
            f"solved_units {list(solved_units)} stand for widths that are solved for, and here none are: they are"
            f" built as written. Set solved_units to null, and units (now {list(units)}) to what is wanted"
        )
    if len(solved_units) != len(units):
        raise ValueError(
            f"solved_units {list(solved_units)} has {len(solved_units)} layers and units {list(units)} has"
            f" {len(units)}; set solved_units to null to have them solved"
        )
