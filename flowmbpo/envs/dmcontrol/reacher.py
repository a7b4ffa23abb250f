"""The reacher with two links or three: easy and hard."""

from __future__ import annotations

import math
from importlib import resources
from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.reading import FastTask, indicator


class Reacher(FastTask):
    """Hold the finger in the target. Its place is part of the model, and so is its size."""

    def __init__(self, model: Any, data: Any) -> None:
        target, finger = model.geom("target").id, model.geom("finger").id
        self._target = data.geom_xpos[target, :2]
        self._finger = data.geom_xpos[finger, :2]
        self._target_size = model.geom_size[target, :1]
        self._finger_size = model.geom_size[finger, :1]
        self._qpos = data.qpos
        self._qvel = data.qvel

    def observed(self) -> tuple[np.ndarray, ...]:
        return self._qpos, self._target - self._finger, self._qvel

    def reward(self) -> float:
        apart = self._target - self._finger
        radii = self._target_size.item() + self._finger_size.item()
        return indicator(math.sqrt(apart.dot(apart)), 0.0, radii)


def make_three_links(target_radius: float, random: np.random.RandomState) -> Any:
    """The suite's task with an arm of three links (TD-MPC2): 1000 control steps of 20 ms."""
    from dm_control.rl import control
    from dm_control.suite import common, reacher

    model = resources.files(__package__).joinpath("reacher_three.xml").read_text(encoding="utf-8")
    physics = reacher.Physics.from_xml_string(model, common.ASSETS)
    # The suite's task sets this at an episode's start only; the reward depends on it from the beginning.
    physics.named.model.geom_size["target", 0] = target_radius
    return control.Environment(physics, reacher.Reacher(target_radius, random=random), time_limit=20.0)
