"""What stands, runs and jumps in the plane: cheetah, hopper, walker."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.reading import FastTask, beyond, gaussian, indicator, linear, sensor_places, sensor_view

_ONE_FOOT_SPEED = 6.0  # m/s
_JUMP_DRIFT = 0.5  # m/s
_LIFTED_HEIGHT, _LIFTED_MARGIN = 1.2, 0.6  # metres
_HOPPER_HEIGHTS = 0.6, 2.0  # metres, of the torso over the foot
_WALKER_HEIGHT = 1.2  # metres


class Runner(FastTask):
    """A torso that is to move at `speed` (m/s) or faster: forward, backwards where it is negative."""

    def __init__(self, model: Any, data: Any, speed: float) -> None:
        self._speed = abs(speed)
        self._direction = math.copysign(1.0, speed)
        self._velocity = sensor_view(model, data, "torso_subtreelinvel")[:1]
        self._pose = data.qpos[1:]  # the horizontal position is no part of an observation
        self._qvel = data.qvel

    def _forward(self) -> float:
        return self._direction * float(self._velocity.item())


class Cheetah(Runner):
    """Run; the reward grows linearly up to `speed`."""

    def observed(self) -> tuple[np.ndarray, ...]:
        return self._pose, self._qvel

    def reward(self) -> float:
        velocity, speed = self._forward(), self._speed
        return 1.0 if velocity >= speed else linear((speed - velocity) / speed, 1.0)


class CheetahOneFoot(Cheetah):
    """Run forward with the torso and the foot `lifted` high above the ground."""

    def __init__(self, model: Any, data: Any, lifted: str) -> None:
        super().__init__(model, data, _ONE_FOOT_SPEED)
        self._foot = data.xpos[model.body(lifted).id, 2:3]
        self._torso = data.xpos[model.body("torso").id, 2:3]

    def reward(self) -> float:
        up = (3 * _lifted(self._foot.item()) + 2 * _lifted(self._torso.item())) / 5
        return up * (5 * super().reward() + 1) / 6


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


class HopperGait(Runner):
    """Keep the torso high over the foot and hop at `speed`; at speed 0, stand with small controls instead."""

    def __init__(self, model: Any, data: Any, speed: float) -> None:
        super().__init__(model, data, speed)
        self._torso = data.xipos[model.body("torso").id, 2:3]
        self._foot = data.xipos[model.body("foot").id, 2:3]
        self._sensors = data.sensordata
        self._touch = sensor_places(model, "touch_toe", "touch_heel")
        self._control = data.ctrl

    def observed(self) -> tuple[np.ndarray, ...]:
        return self._pose, self._qvel, np.log1p(self._sensors.take(self._touch))

    def reward(self) -> float:
        standing = indicator(self._torso.item() - self._foot.item(), *_HOPPER_HEIGHTS)
        if self._speed > 0:
            return standing * beyond(self._forward(), self._speed)
        small = np.maximum(1 - self._control * self._control, 0.0)
        small_control = float(np.add.reduce(small)) / len(small)  # not `sum`, which adds in another order
        return standing * ((small_control + 4) / 5)


class Walker(Runner):
    """Stand upright, and move at `speed`."""

    def __init__(self, model: Any, data: Any, speed: float) -> None:
        super().__init__(model, data, speed)
        torso = model.body("torso").id
        bodies = np.arange(1, model.nbody)
        self._xmat = data.xmat.reshape(-1)
        self._orientations = (9 * bodies[:, None] + (0, 2)).ravel()  # xx and xz of every body
        self._height = data.xpos[torso, 2:3]
        self._upright = data.xmat[torso, 8:9]

    def observed(self) -> tuple[np.ndarray, ...]:
        return self._xmat.take(self._orientations), self._height, self._qvel

    def reward(self) -> float:
        height: float = self._height.item()
        standing = 1.0 if height >= _WALKER_HEIGHT else gaussian((_WALKER_HEIGHT - height) / (_WALKER_HEIGHT / 2))
        upright: float = (1 + self._upright.item()) / 2
        stand = (3 * standing + upright) / 4
        return stand if self._speed == 0 else stand * (5 * beyond(self._forward(), self._speed) + 1) / 6
