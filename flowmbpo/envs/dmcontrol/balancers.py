"""What swings up and balances: acrobot, cart and poles, pendulum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.reading import GAUSSIAN_SCALE, FastTask, beyond, gaussian, indicator

_CART_RANGE = 0.25  # metres either side
_UPRIGHT_COSINE = 0.995
_CART_MARGIN = 2.0  # metres
_VELOCITY_MARGIN = 5.0  # rad/s
_WITHIN_8_DEGREES = float(np.cos(np.deg2rad(8)))
_SPIN_SPEED = 9.0  # rad/s


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
        return indicator(self._cosine.item(), _WITHIN_8_DEGREES, 1.0)


class PendulumSpin(PendulumSwingUp):
    """Turn at 9 rad/s or faster, either way."""

    def reward(self) -> float:
        return beyond(abs(self._qvel.item()), _SPIN_SPEED)
