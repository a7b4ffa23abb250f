"""Options of training on a stored dataset. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowmbpo.config.base import FrozenConfig, PositiveInt


class DataConfig(FrozenConfig):
    """The dataset that a run learns from, and the order in which it is read.

    `balance: tasks` draws every task equally often, `proportional` every transition. Blocks of whole
    episodes are held in memory, at most `memory_mb` of them by each reader (the model's windows, the policy's
    start states), and windows are shuffled over what is held: more memory mixes better and changes the order,
    so it belongs to the experiment. `threads` and `prefetch` (batches prepared ahead) change nothing but the
    speed.
    """

    path: Annotated[str, Field(min_length=1)]
    balance: Literal["tasks", "proportional"] = "tasks"
    memory_mb: PositiveInt = 1024
    threads: PositiveInt = 1
    prefetch: PositiveInt = 4
