"""The fish: upright and swim."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.reading import FastTask, gaussian

_JOINTS = ("tail1", "tail_twist", "tail2", "finright_roll", "finright_pitch", "finleft_roll", "finleft_pitch")


class FishUpright(FastTask):
    """Keep the belly down."""

    def __init__(self, model: Any, data: Any) -> None:
        self._qpos = data.qpos
        self._qvel = data.qvel
        self._joints = np.array([model.joint(name).qposadr[0] for name in _JOINTS], dtype=np.int64)
        self._upright = data.xmat[model.body("torso").id, 8:9]

    def observed(self) -> tuple[np.ndarray, ...]:
        return self._qpos.take(self._joints), self._upright, self._qvel

    def reward(self) -> float:
        return gaussian(abs(self._upright.item() - 1))


class FishSwim(FishUpright):
    """Bring the mouth to the target, which is part of the model."""

    def __init__(self, model: Any, data: Any) -> None:
        super().__init__(model, data)
        target, mouth = model.geom("target").id, model.geom("mouth").id
        self._target = data.geom_xpos[target]
        self._mouth = data.geom_xpos[mouth]
        self._mouth_frame = data.geom_xmat[mouth].reshape(3, 3)
        self._target_size = model.geom_size[target, :1]
        self._mouth_size = model.geom_size[mouth, :1]

    def observed(self) -> tuple[np.ndarray, ...]:
        return self._qpos.take(self._joints), self._upright, self._to_target(), self._qvel

    def reward(self) -> float:
        radii = self._mouth_size.item() + self._target_size.item()
        apart = self._to_target()
        distance = math.sqrt(apart.dot(apart))
        in_target = 1.0 if distance <= radii else gaussian((distance - radii) / (2 * radii))
        upright = 0.5 * (self._upright.item() + 1)
        return float((7 * in_target + upright) / 8)

    def _to_target(self) -> np.ndarray:
        """From the mouth to the target in the mouth's frame, metres [3]."""
        apart: np.ndarray = (self._target - self._mouth).dot(self._mouth_frame)
        return apart
