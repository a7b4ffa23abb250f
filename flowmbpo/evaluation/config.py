"""Options of real-environment evaluation. Imports no torch."""

from __future__ import annotations

from flowmbpo.config.base import FrozenConfig, NonNegativeInt, PositiveInt


class EvaluationConfig(FrozenConfig):
    """`every` epochs (0: only at the end), `episodes` episodes, on seeds never trained on.

    Of a task set, `episodes` is rounded up to a multiple of the number of tasks. `at_start` also evaluates
    what a run begins with, before its first epoch. `threshold` is a return: the run reports the environment
    steps after which an evaluation first reached it.
    """

    every: NonNegativeInt = 200
    episodes: PositiveInt = 20
    deterministic: bool = True
    at_start: bool = False
    threshold: float | None = None
