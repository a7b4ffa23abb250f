"""The planar one-legged hopper: stand and hop. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.fast.task import FastTask, sensor_places, sensor_view
from flowmbpo.envs.dmcontrol.fast.tolerances import indicator, linear, small_controls

_STAND_HEIGHT, _TOP_HEIGHT = 0.6, 2.0  # metres, of the torso over the foot
_HOP_SPEED = 2.0  # m/s


class Hopper(FastTask):
    """Keep the torso high over the foot; `hopping` forward, or else with small controls."""

    def __init__(self, model: Any, data: Any, hopping: bool) -> None:
        self._hopping = hopping
        self._torso = data.xipos[model.body("torso").id, 2:3]
        self._foot = data.xipos[model.body("foot").id, 2:3]
        self._velocity = sensor_view(model, data, "torso_subtreelinvel")[:1]
        self._pose = data.qpos[1:]
        self._qvel = data.qvel
        self._sensors = data.sensordata
        self._touch = sensor_places(model, "touch_toe", "touch_heel")
        self._control = data.ctrl
        self._split = len(self._pose)

    def observe(self, obs: np.ndarray) -> None:
        obs[: self._split] = self._pose
        obs[self._split : -2] = self._qvel
        obs[-2:] = np.log1p(self._sensors.take(self._touch))

    def reward(self) -> float:
        standing = indicator(self._torso.item() - self._foot.item(), _STAND_HEIGHT, _TOP_HEIGHT)
        if self._hopping:
            velocity = self._velocity.item()
            hopping = 1.0 if velocity >= _HOP_SPEED else linear((_HOP_SPEED - velocity) / (_HOP_SPEED / 2), 0.5)
            return standing * hopping
        value = small_controls(self._control)
        small_control = float(np.add.reduce(value)) / len(value)
        return standing * ((small_control + 4) / 5)
