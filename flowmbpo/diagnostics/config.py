"""Options of the light diagnostics that a run makes of itself. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flowmbpo.config.base import FrozenConfig, NonNegativeInt, PositiveInt


class DiagnosticsConfig(FrozenConfig):
    """Every `every` epochs (0: never) the run measures itself; `flowmbpo diagnose` does it with more samples.

    `gradients` is M, the number of independent gradients behind an ESNR; `probes` the random vectors
    behind a Jacobian norm; `windows` how many stretches of replayed experience the errors are means over.
    Nothing of it touches the run's own randomness: a run with and without it is bit-equal.
    """

    every: NonNegativeInt = 100
    gradients: Annotated[int, Field(ge=2)] = 4
    probes: Annotated[int, Field(ge=2)] = 4
    windows: PositiveInt = 64
