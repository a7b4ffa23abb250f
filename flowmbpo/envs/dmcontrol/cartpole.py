"""The cart with one, two or three poles: balance and swing up."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.reading import GAUSSIAN_SCALE, FastTask, gaussian, indicator

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
        self._cosines = data.xmat[2:, 8]
        start = int(model.joint("slider").qposadr[0])
        self._cart = data.qpos[start : start + 1]
        self._qvel = data.qvel
        self._pole_velocities = data.qvel[1:]
        self._control = data.ctrl

    def observed(self) -> tuple[np.ndarray, ...]:
        return self._cart, self._xmat.take(self._orientations), self._qvel

    def reward(self) -> float:
        cart = self._cart.item()
        if self._sparse:
            upright = all(_UPRIGHT_COSINE <= cosine <= 1 for cosine in self._cosines.tolist())
            return indicator(cart, -_CART_RANGE, _CART_RANGE) * float(upright)
        heights = (self._cosines + 1) / 2
        centred = (1 + gaussian(abs(cart) / _CART_MARGIN)) / 2
        force = self._control.item()
        small_control = (4 + (1 - force * force if abs(force) < 1 else 0.0)) / 5
        small_velocity = (1 + min(_slowness(velocity) for velocity in self._pole_velocities.tolist())) / 2
        return float(np.add.reduce(heights)) / len(heights) * small_control * small_velocity * centred


def _slowness(velocity: float) -> float:
    """A Gaussian of a pole's velocity; squared by a product, as numpy squares vectors, and not by `pow`."""
    distance = abs(velocity) / _VELOCITY_MARGIN * GAUSSIAN_SCALE
    return float(np.exp(-0.5 * (distance * distance)))
