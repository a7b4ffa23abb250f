"""The finger and its spinner: spin and turn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.reading import FastTask, sensor_places, sensor_view

_SPIN_VELOCITY = 15.0  # rad/s


class FingerSpin(FastTask):
    """Pays while the spinner turns at 15 rad/s or faster, in the negative direction."""

    def __init__(self, model: Any, data: Any) -> None:
        self._sensors = data.sensordata
        self._angles = sensor_places(model, "proximal", "distal")
        self._velocities = sensor_places(model, "proximal_velocity", "distal_velocity", "hinge_velocity")
        self._touch = sensor_places(model, "touchtop", "touchbottom")
        self._hinge_velocity = sensor_view(model, data, "hinge_velocity")
        self._tip = sensor_view(model, data, "tip")[::2]  # x and z
        self._spinner = sensor_view(model, data, "spinner")[::2]

    def observed(self) -> tuple[np.ndarray, ...]:
        angles, velocities, touch = map(self._sensors.take, (self._angles, self._velocities, self._touch))
        return angles, self._tip - self._spinner, velocities, np.log1p(touch)

    def reward(self) -> float:
        return float(self._hinge_velocity.item() <= -_SPIN_VELOCITY)


class FingerTurn(FingerSpin):
    """Pays while the spinner's tip is in the target. Its place is part of the model, and so is its size."""

    def __init__(self, model: Any, data: Any) -> None:
        super().__init__(model, data)
        self._target = sensor_view(model, data, "target")[::2]
        self._target_size = model.site_size[model.site("target").id, :1]

    def observed(self) -> tuple[np.ndarray, ...]:
        return *super().observed(), self._target - self._spinner, np.array([self._distance()])

    def reward(self) -> float:
        return float(self._distance() <= 0)

    def _distance(self) -> float:
        """Metres from the tip to the target's edge, negative inside."""
        apart = (self._target - self._spinner) - (self._tip - self._spinner)
        return math.sqrt(apart.dot(apart)) - float(self._target_size.item())
