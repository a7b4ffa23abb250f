"""The ball in the cup: catch and spin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.reading import FastTask, beyond

_SPIN_DISTANCE = 0.5  # metres
_SPIN_SPEED = 6.0  # m/s
_OUTSIDE_SHARE = 0.1  # of episodes of cup-spin start wherever the ball touches nothing, not only in the cup
_START_X, _START_Z = (-0.2, 0.2), (0.2, 0.5)  # metres, joint coordinates


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

    def observed(self) -> tuple[np.ndarray, ...]:
        return self._qpos, self._qvel

    def reward(self) -> float:
        radius = self._ball_size.item()
        (x, z), (ball_x, ball_z) = self._target.tolist(), self._ball.tolist()
        half_x, half_z = self._target_size.tolist()
        return float(abs(x - ball_x) < half_x - radius and abs(z - ball_z) < half_z - radius)


class CupSpin(Cup):
    """Swing the ball fast and far from the cup (TD-MPC2)."""

    def __init__(self, model: Any, data: Any) -> None:
        super().__init__(model, data)
        self._dofs = np.array([model.joint(name).dofadr[0] for name in ("ball_x", "ball_z")], dtype=np.int64)

    def reward(self) -> float:
        apart = self._target - self._ball
        velocity = self._qvel.take(self._dofs)
        far = beyond(math.sqrt(apart.dot(apart)), _SPIN_DISTANCE)
        fast = beyond(math.sqrt(velocity.dot(velocity)), _SPIN_SPEED)
        return (1 - super().reward()) * (far + 2 * fast) / 3


def start_spin(task: Any, physics: Any) -> None:
    """cup-spin's episode start: the ball where it touches nothing and, in 90% of the episodes, in the cup."""
    anywhere = task.random.uniform() < _OUTSIDE_SHARE
    placed = False
    while not placed:  # 2% of the positions are in the target, so some 50 are drawn
        physics.named.data.qpos["ball_x"] = task.random.uniform(*_START_X)
        physics.named.data.qpos["ball_z"] = task.random.uniform(*_START_Z)
        physics.after_reset()
        placed = physics.data.ncon == 0 and (anywhere or bool(physics.in_target()))
    task.after_step(physics)  # all that dm_control does at a start beside drawing one
