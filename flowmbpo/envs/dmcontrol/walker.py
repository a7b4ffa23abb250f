"""The planar walker: stand, walk and run, either way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.reading import FastTask, beyond, gaussian, sensor_view

_STAND_HEIGHT = 1.2  # metres


class Walker(FastTask):
    """Stand upright, and move at `speed` (m/s) or faster: forward, backwards where it is negative."""

    def __init__(self, model: Any, data: Any, speed: float) -> None:
        torso = model.body("torso").id
        bodies = np.arange(1, model.nbody)
        self._speed = abs(speed)
        self._direction = math.copysign(1.0, speed)
        self._xmat = data.xmat.reshape(-1)
        self._orientations = (9 * bodies[:, None] + (0, 2)).ravel()  # xx and xz of every body
        self._height = data.xpos[torso, 2:3]
        self._upright = data.xmat[torso, 8:9]
        self._velocity = sensor_view(model, data, "torso_subtreelinvel")[:1]
        self._qvel = data.qvel

    def observed(self) -> tuple[np.ndarray, ...]:
        return self._xmat.take(self._orientations), self._height, self._qvel

    def reward(self) -> float:
        height: float = self._height.item()
        standing = 1.0 if height >= _STAND_HEIGHT else gaussian((_STAND_HEIGHT - height) / (_STAND_HEIGHT / 2))
        upright: float = (1 + self._upright.item()) / 2
        stand = (3 * standing + upright) / 4
        speed = self._speed
        if speed == 0:
            return stand
        velocity: float = self._direction * self._velocity.item()
        return stand * (5 * beyond(velocity, speed) + 1) / 6
