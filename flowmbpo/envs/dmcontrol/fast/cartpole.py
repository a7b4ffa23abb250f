"""The cart with one, two or three poles: balance and swing up. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.fast.task import FastTask
from flowmbpo.envs.dmcontrol.fast.tolerances import GAUSSIAN_SCALE, gaussian, indicator, small_controls

_CART_RANGE = 0.25  # metres either side
_UPRIGHT_COSINE = 0.995
_CART_MARGIN = 2.0  # metres
_VELOCITY_MARGIN = 5.0  # rad/s


class Cartpole(FastTask):
    """Poles up and the cart in the middle: `sparse` pays inside a box only, otherwise smoothly."""

    def __init__(self, model: Any, data: Any, sparse: bool) -> None:
        self._sparse = sparse
        poles = np.arange(2, model.nbody)
        self._xmat = data.xmat.reshape(-1)
        self._orientations = (9 * poles[:, None] + (8, 2)).ravel()  # zz and xz of every pole
        self._split = 1 + len(self._orientations)
        self._cosines = data.xmat[2:, 8]
        start = int(model.joint("slider").qposadr[0])
        self._cart = data.qpos[start : start + 1]
        self._qvel = data.qvel
        self._pole_velocities = data.qvel[1:]
        self._control = data.ctrl

    def observe(self, obs: np.ndarray) -> None:
        obs[0] = self._cart.item()
        obs[1 : self._split] = self._xmat.take(self._orientations)
        obs[self._split :] = self._qvel

    def reward(self) -> float:
        cart = self._cart.item()
        if self._sparse:
            upright = all(_UPRIGHT_COSINE <= cosine <= 1 for cosine in self._cosines.tolist())
            return indicator(cart, -_CART_RANGE, _CART_RANGE) * float(upright)
        heights = (self._cosines + 1) / 2
        centred = (1 + gaussian(abs(cart) / _CART_MARGIN)) / 2
        small_control: float = (4 + small_controls(self._control).item(0)) / 5
        distances = np.abs(self._pole_velocities) / _VELOCITY_MARGIN * GAUSSIAN_SCALE
        small_velocity = (1 + float(np.exp(-0.5 * (distances * distances)).min())) / 2
        return float(np.add.reduce(heights)) / len(heights) * small_control * small_velocity * centred
