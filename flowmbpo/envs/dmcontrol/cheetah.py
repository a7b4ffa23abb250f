"""The planar cheetah: run either way, run on one foot, jump."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.reading import FastTask, gaussian, linear, sensor_view

_ONE_FOOT_SPEED = 6.0  # m/s
_JUMP_DRIFT = 0.5  # m/s
_LIFTED_HEIGHT, _LIFTED_MARGIN = 1.2, 0.6  # metres


class Cheetah(FastTask):
    """Run; the reward grows linearly up to `speed` (m/s), backwards where it is negative."""

    def __init__(self, model: Any, data: Any, speed: float) -> None:
        self._speed = abs(speed)
        self._direction = math.copysign(1.0, speed)
        self._velocity = sensor_view(model, data, "torso_subtreelinvel")[:1]
        self._pose = data.qpos[1:]  # the horizontal position is no part of the observation
        self._qvel = data.qvel

    def observed(self) -> tuple[np.ndarray, ...]:
        return self._pose, self._qvel

    def reward(self) -> float:
        return self._running()

    def _running(self) -> float:
        velocity, speed = self._direction * self._velocity.item(), self._speed
        return 1.0 if velocity >= speed else linear((speed - velocity) / speed, 1.0)


class CheetahOneFoot(Cheetah):
    """Run forward with the torso and the foot `lifted` high above the ground."""

    def __init__(self, model: Any, data: Any, lifted: str) -> None:
        super().__init__(model, data, _ONE_FOOT_SPEED)
        self._foot = data.xpos[model.body(lifted).id, 2:3]
        self._torso = data.xpos[model.body("torso").id, 2:3]

    def reward(self) -> float:
        up = (3 * _lifted(self._foot.item()) + 2 * _lifted(self._torso.item())) / 5
        return up * (5 * self._running() + 1) / 6


class CheetahJump(Cheetah):
    """Be high above the ground without moving along it."""

    def __init__(self, model: Any, data: Any) -> None:
        super().__init__(model, data, _JUMP_DRIFT)
        self._torso = data.xpos[model.body("torso").id, 2:3]
        self._feet = [data.xpos[model.body(name).id, 2:3] for name in ("ffoot", "bfoot")]

    def reward(self) -> float:
        torso = self._torso.item()
        up = sum(_lifted((torso + foot.item()) / 2) for foot in self._feet) / 2
        drift = abs(self._velocity.item())
        still = 1.0 if drift <= _JUMP_DRIFT else linear((drift - _JUMP_DRIFT) / _JUMP_DRIFT, 1.0)
        return (5 * up + still) / 6


def _lifted(height: float) -> float:
    return 1.0 if height >= _LIFTED_HEIGHT else gaussian((_LIFTED_HEIGHT - height) / _LIFTED_MARGIN)
