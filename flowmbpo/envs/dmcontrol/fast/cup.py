"""The ball in the cup: catch. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.fast.task import FastTask


class Cup(FastTask):
    """Pays while the whole ball is inside the cup."""

    def __init__(self, model: Any, data: Any) -> None:
        target, ball = model.site("target").id, model.body("ball").id
        self._target = data.site_xpos[target, ::2]  # x and z
        self._ball = data.xpos[ball, ::2]
        self._target_size = model.site_size[target, ::2]
        self._ball_size = model.geom_size[model.geom("ball").id, :1]
        self._qpos = data.qpos
        self._qvel = data.qvel
        self._split = len(self._qpos)

    def observe(self, obs: np.ndarray) -> None:
        obs[: self._split] = self._qpos
        obs[self._split :] = self._qvel

    def reward(self) -> float:
        radius = self._ball_size.item()
        (x, z), (ball_x, ball_z), (half_x, half_z) = (
            self._target.tolist(),
            self._ball.tolist(),
            self._target_size.tolist(),
        )
        return float(abs(x - ball_x) < half_x - radius and abs(z - ball_z) < half_z - radius)
