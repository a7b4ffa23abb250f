"""What a run starts from, where that is another run's weights. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flowmbpo.config.base import FrozenConfig, NonNegativeInt, Units


class InitialConfig(FrozenConfig):
    """The checkpoint whose weights a run begins with; `sha256` is filled in when it is loaded.

    A task that the checkpoint never saw starts with the embedding of the task `embedding_from`, or of the
    nearest one. Dynamics of another kind are distilled from the checkpoint's by `distill_updates` updates.
    """

    checkpoint: Annotated[str, Field(min_length=1)]
    sha256: str | None = None
    embedding_from: str | None = None
    distill_updates: NonNegativeInt = 2000


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
