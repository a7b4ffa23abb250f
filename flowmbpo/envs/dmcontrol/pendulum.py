"""The torque-limited pendulum: swing up and spin."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.reading import FastTask, beyond, indicator

_UPRIGHT_COSINE = float(np.cos(np.deg2rad(8)))
_SPIN_SPEED = 9.0  # rad/s


class PendulumSwingUp(FastTask):
    """Pays within 8 degrees of upright."""

    def __init__(self, model: Any, data: Any) -> None:
        pole = model.body("pole").id
        self._cosine = data.xmat[pole, 8:9]
        self._sine = data.xmat[pole, 2:3]
        self._qvel = data.qvel

    def observed(self) -> tuple[np.ndarray, ...]:
        return self._cosine, self._sine, self._qvel

    def reward(self) -> float:
        return indicator(self._cosine.item(), _UPRIGHT_COSINE, 1.0)


class PendulumSpin(PendulumSwingUp):
    """Turn at 9 rad/s or faster, either way."""

    def reward(self) -> float:
        return beyond(abs(self._qvel.item()), _SPIN_SPEED)
