"""What makes a Control Suite task cheap to read. Imports no torch.

dm_control finds every number by name, through objects made anew at each step; that, and not the
physics, is most of what an agent step of the cheetah costs there. A fast task looks the names up once
and keeps views of the arrays of one MjData, whose addresses never change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np


class FastTask(ABC):
    """Observation and reward of a task without termination, bit-equal to dm_control's.

    Bit-equal means the same operations in the same order, and numpy's `exp`, `log1p` and dot products
    where dm_control uses those: the C library's differ in the last place.
    """

    @abstractmethod
    def observe(self, obs: np.ndarray) -> None:
        """Write the current observation into `obs` [O], float32 or float64."""

    @abstractmethod
    def reward(self) -> float:
        """The current reward."""


def sensor_view(model: Any, data: Any, name: str) -> np.ndarray:
    """The values of the sensor called `name`, float64 [dimension]."""
    sensor = model.sensor(name)
    start = int(sensor.adr[0])
    view: np.ndarray = data.sensordata[start : start + int(sensor.dim[0])]
    return view


def sensor_places(model: Any, *names: str) -> np.ndarray:
    """Where the values of the one-dimensional sensors called `names` lie in `sensordata`, int64 [names]."""
    return np.array([model.sensor(name).adr[0] for name in names], dtype=np.int64)
