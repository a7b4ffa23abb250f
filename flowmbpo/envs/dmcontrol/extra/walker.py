"""walker-walk-backwards and walker-run-backwards. Imports no torch.

Model, episode start and observation are the suite's walker's; the reward is TD-MPC2's (Hansen et al. 2024).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from dm_control.rl import control
from dm_control.suite import walker
from dm_control.utils.rewards import tolerance

WALK_SPEED = 1.0  # m/s
RUN_SPEED = 8.0  # m/s
_TIME_LIMIT = 25.0  # s
_CONTROL_TIMESTEP = 0.025  # s


class WalkerBackwards(walker.PlanarWalker):  # type: ignore[misc]  # dm_control carries no types
    """The walker, rewarded for standing while its centre of mass moves at -`speed` m/s or faster."""

    def __init__(self, speed: float, random: np.random.RandomState) -> None:
        super().__init__(move_speed=0, random=random)  # at 0 the suite's reward is its standing term alone
        self._speed = speed

    def get_reward(self, physics: Any) -> float:
        """stand (5 T(vx <= -s; margin s/2, value .5, linear) + 1)/6, in [0, 1]."""
        moving = tolerance(
            physics.horizontal_velocity(),
            bounds=(-math.inf, -self._speed),
            margin=self._speed / 2,
            value_at_margin=0.5,
            sigmoid="linear",
        )
        return float(super().get_reward(physics) * (5 * moving + 1) / 6)


def make_walker_backwards(random: np.random.RandomState, speed: float) -> control.Environment:
    """1000 control steps of 25 ms."""
    physics = walker.Physics.from_xml_string(*walker.get_model_and_assets())
    task = WalkerBackwards(speed, random)
    return control.Environment(physics, task, time_limit=_TIME_LIMIT, control_timestep=_CONTROL_TIMESTEP)
