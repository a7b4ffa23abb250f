"""The planar cheetah: run. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.fast.task import FastTask, sensor_view
from flowmbpo.envs.dmcontrol.fast.tolerances import linear

_RUN_SPEED = 10.0  # m/s


class Cheetah(FastTask):
    """Run forward; the reward grows linearly up to 10 m/s."""

    def __init__(self, model: Any, data: Any) -> None:
        self._velocity = sensor_view(model, data, "torso_subtreelinvel")[:1]
        self._pose = data.qpos[1:]  # the horizontal position is no part of the observation
        self._qvel = data.qvel
        self._split = len(self._pose)

    def observe(self, obs: np.ndarray) -> None:
        obs[: self._split] = self._pose
        obs[self._split :] = self._qvel

    def reward(self) -> float:
        velocity = self._velocity.item()
        return 1.0 if velocity >= _RUN_SPEED else linear((_RUN_SPEED - velocity) / _RUN_SPEED, 1.0)
