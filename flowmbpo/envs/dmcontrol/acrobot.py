"""The acrobot: swing up."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.reading import FastTask, gaussian


class Acrobot(FastTask):
    """Hold the tip in the target; `sparse` pays nothing outside it."""

    def __init__(self, model: Any, data: Any, sparse: bool) -> None:
        self._sparse = sparse
        upper, lower = model.body("upper_arm").id, model.body("lower_arm").id
        self._xmat = data.xmat.reshape(-1)
        self._orientations = np.array([9 * upper + 2, 9 * lower + 2, 9 * upper + 8, 9 * lower + 8])  # xz, then zz
        self._qvel = data.qvel
        target = model.site("target").id
        self._target = data.site_xpos[target]
        self._tip = data.site_xpos[model.site("tip").id]
        self._target_size = model.site_size[target, :1]

    def observed(self) -> tuple[np.ndarray, ...]:
        return self._xmat.take(self._orientations), self._qvel

    def reward(self) -> float:
        apart = self._target - self._tip
        distance = math.sqrt(apart.dot(apart))
        radius = self._target_size.item()
        if distance <= radius:
            return 1.0
        return 0.0 if self._sparse else gaussian(distance - radius)
