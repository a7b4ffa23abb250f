"""Where metrics go beside metrics.jsonl. Imports no torch."""

from __future__ import annotations

from typing import Literal

from flowmbpo.config.base import FrozenConfig, PositiveInt


class TrackingConfig(FrozenConfig):
    """`sinks` beside metrics.jsonl and the console, which are always on; one row every `every` epochs."""

    sinks: tuple[Literal["wandb", "tensorboard"], ...] = ()
    project: str = "flow-mbpo-pwm"
    every: PositiveInt = 1
