"""The planar one-legged hopper: stand, and hop either way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.reading import FastTask, beyond, indicator, sensor_places, sensor_view

_STAND_HEIGHT, _TOP_HEIGHT = 0.6, 2.0  # metres, of the torso over the foot


class HopperGait(FastTask):
    """Keep the torso high over the foot and hop at `speed` (m/s) or faster, backwards where it is negative.

    At speed 0, stand with small controls instead.
    """

    def __init__(self, model: Any, data: Any, speed: float) -> None:
        self._speed = abs(speed)
        self._direction = math.copysign(1.0, speed)
        self._torso = data.xipos[model.body("torso").id, 2:3]
        self._foot = data.xipos[model.body("foot").id, 2:3]
        self._velocity = sensor_view(model, data, "torso_subtreelinvel")[:1]
        self._pose = data.qpos[1:]
        self._qvel = data.qvel
        self._sensors = data.sensordata
        self._touch = sensor_places(model, "touch_toe", "touch_heel")
        self._control = data.ctrl

    def observed(self) -> tuple[np.ndarray, ...]:
        return self._pose, self._qvel, np.log1p(self._sensors.take(self._touch))

    def reward(self) -> float:
        standing = indicator(self._torso.item() - self._foot.item(), _STAND_HEIGHT, _TOP_HEIGHT)
        speed = self._speed
        if speed > 0:
            velocity = self._direction * self._velocity.item()
            return standing * beyond(velocity, speed)
        small = np.maximum(1 - self._control * self._control, 0.0)
        small_control = float(np.add.reduce(small)) / len(small)  # not `sum`, which adds in another order
        return standing * ((small_control + 4) / 5)
