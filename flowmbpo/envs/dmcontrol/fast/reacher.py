"""The reacher with two links or three: easy and hard. Imports no torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.fast.task import FastTask
from flowmbpo.envs.dmcontrol.fast.tolerances import indicator


class Reacher(FastTask):
    """Hold the finger in the target. Its place is part of the model, and so is its size."""

    def __init__(self, model: Any, data: Any) -> None:
        target, finger = model.geom("target").id, model.geom("finger").id
        self._target = data.geom_xpos[target, :2]
        self._finger = data.geom_xpos[finger, :2]
        self._target_size = model.geom_size[target, :1]
        self._finger_size = model.geom_size[finger, :1]
        self._qpos = data.qpos
        self._qvel = data.qvel
        self._links = len(self._qpos)

    def observe(self, obs: np.ndarray) -> None:
        links = self._links
        obs[:links] = self._qpos
        obs[links : links + 2] = self._target - self._finger
        obs[links + 2 :] = self._qvel

    def reward(self) -> float:
        apart = self._target - self._finger
        radii = self._target_size.item() + self._finger_size.item()
        return indicator(math.sqrt(apart.dot(apart)), 0.0, radii)
