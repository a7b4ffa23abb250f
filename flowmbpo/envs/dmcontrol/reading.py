"""What makes a Control Suite task cheap to read, and the soft indicators that its rewards are made of.

dm_control finds every number by name, through objects made anew at each step: most of what an agent step of the cheetah
costs there. A fast task looks the names up once and keeps views of the arrays of one MjData, which never move.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

Reader = Callable[[Any, Any], "FastTask"]
"""Makes a reader of (MjModel, MjData)."""
GAUSSIAN_SCALE = float(np.sqrt(-2 * np.log(0.1)))
"""A Gaussian of distance 1 is 0.1 with this factor on the distance."""


class FastTask(ABC):
    """Observation and reward of a task without termination, bit-equal to dm_control's.

    Bit-equal means the same operations in the same order, and numpy's `exp`, `log1p` and dot products where dm_control
    uses those: the C library's differ in the last place. The soft indicators are `rewards.tolerance` outside its
    bounds, as functions of the distance to the nearest bound in units of the margin.
    """

    @abstractmethod
    def observed(self) -> tuple[np.ndarray, ...]:
        """The parts of the current observation in their order, float64."""

    @abstractmethod
    def reward(self) -> float:
        """The current reward."""


def sensor_view(model: Any, data: Any, name: str) -> np.ndarray:
    """The values of the sensor called `name`, float64 [dimension]."""
    sensor = model.sensor(name)
    start = int(sensor.adr[0])
    return np.asarray(data.sensordata[start : start + int(sensor.dim[0])])


def sensor_places(model: Any, *names: str) -> np.ndarray:
    """Where the values of the one-dimensional sensors called `names` lie in `sensordata`, int64 [names]."""
    return np.array([model.sensor(name).adr[0] for name in names], dtype=np.int64)


def gaussian(distance: float) -> float:
    """exp(-(s d)^2 / 2): 1 at distance 0, 0.1 at distance 1."""
    return float(np.exp(-0.5 * (distance * GAUSSIAN_SCALE) ** 2))


def linear(distance: float, slope: float) -> float:
    """1 - slope * distance, and 0 from where that line ends."""
    fall = distance * slope
    return 1 - fall if abs(fall) < 1 else 0.0


def beyond(value: float, threshold: float) -> float:
    """1 from `threshold` > 0 on, 1/2 at half of it, 0 at 0."""
    return 1.0 if value >= threshold else linear((threshold - value) / (threshold / 2), 0.5)


def indicator(x: float, lower: float, upper: float) -> float:
    """1 where lower <= x <= upper, else 0."""
    return 1.0 if lower <= x <= upper else 0.0
