"""Which task, on which simulator, how many copies. Imports no torch."""

from __future__ import annotations

from flowmbpo.config.base import FrozenConfig, PositiveInt


class TaskConfig(FrozenConfig):
    """`backend: auto` takes the task's own simulator; `workers: null` one process per core."""

    name: str = "toy-pendulum-swingup"
    backend: str = "auto"
    num_envs: PositiveInt = 128
    workers: PositiveInt | None = None
