"""cheetah-run-backwards, -run-front, -run-back and -jump. Imports no torch.

Model, episode start and observation are the suite's cheetah's; the rewards are TD-MPC2's (Hansen et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from dm_control.rl import control
from dm_control.suite import cheetah
from dm_control.utils.rewards import tolerance

FRONT_FOOT, BACK_FOOT = "ffoot", "bfoot"
_TIME_LIMIT = 10.0  # s
_BACKWARDS_SPEED = 8.0  # m/s
_ONE_FOOT_SPEED = 6.0  # m/s
_JUMP_DRIFT = 0.5  # m/s
_LIFTED_HEIGHT = 1.2  # m
_LIFTED_MARGIN = 0.6  # m


class CheetahBackwards(cheetah.Cheetah):  # type: ignore[misc]  # dm_control carries no types
    """The cheetah, rewarded for running backwards."""

    def get_reward(self, physics: Any) -> float:
        """T(speed <= -8; margin 8, value 0, linear), in [0, 1]."""
        bounds = (-math.inf, -_BACKWARDS_SPEED)
        return float(
            tolerance(physics.speed(), bounds=bounds, margin=_BACKWARDS_SPEED, value_at_margin=0, sigmoid="linear")
        )


class CheetahOneFoot(cheetah.Cheetah):  # type: ignore[misc]
    """The cheetah, rewarded for running forward with one foot and the torso lifted."""

    def __init__(self, lifted_foot: str, random: np.random.RandomState) -> None:
        super().__init__(random=random)
        self._lifted_foot = lifted_foot

    def get_reward(self, physics: Any) -> float:
        """up (5 T(speed >= 6; margin 6, value 0, linear) + 1)/6, in [0, 1].

        up = (3 T(foot z >= 1.2; margin .6) + 2 T(torso z >= 1.2; margin .6))/5.
        """
        up = (3 * _lifted(_height(physics, self._lifted_foot)) + 2 * _lifted(_height(physics, "torso"))) / 5
        bounds = (_ONE_FOOT_SPEED, math.inf)
        running = tolerance(physics.speed(), bounds=bounds, margin=_ONE_FOOT_SPEED, value_at_margin=0, sigmoid="linear")
        return float(up * (5 * running + 1) / 6)


class CheetahJump(cheetah.Cheetah):  # type: ignore[misc]
    """The cheetah, rewarded for being high above the ground without moving along it."""

    def get_reward(self, physics: Any) -> float:
        """Mean over both feet of (5 T((torso z + foot z)/2 >= 1.2; margin .6) + still)/6, in [0, 1].

        still = T(speed in [-.5, .5]; margin .5, value 0, linear).
        """
        torso = _height(physics, "torso")
        up = sum(_lifted((torso + _height(physics, foot)) / 2) for foot in (FRONT_FOOT, BACK_FOOT)) / 2
        bounds = (-_JUMP_DRIFT, _JUMP_DRIFT)
        still = tolerance(physics.speed(), bounds=bounds, margin=_JUMP_DRIFT, value_at_margin=0, sigmoid="linear")
        return float((5 * up + still) / 6)


def make_cheetah(random: np.random.RandomState, task: Callable[..., cheetah.Cheetah]) -> control.Environment:
    """1000 control steps of 10 ms of the task that `task(random=...)` makes."""
    physics = cheetah.Physics.from_xml_string(*cheetah.get_model_and_assets())
    return control.Environment(physics, task(random=random), time_limit=_TIME_LIMIT)


def _height(physics: Any, body: str) -> float:
    """z of a body's frame in the world, m."""
    return float(physics.named.data.xpos[body, "z"])


def _lifted(height: float) -> float:
    return float(tolerance(height, bounds=(_LIFTED_HEIGHT, math.inf), margin=_LIFTED_MARGIN))
