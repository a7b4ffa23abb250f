"""hopper-hop-backwards. Imports no torch.

Model, episode start and observation are the suite's hopper's; the reward is TD-MPC2's (Hansen et al. 2024).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from dm_control.rl import control
from dm_control.suite import hopper
from dm_control.utils.rewards import tolerance

_TIME_LIMIT = 20.0  # s
_CONTROL_TIMESTEP = 0.02  # s
_STANDING = (0.6, 2.0)  # m, torso above foot
_HOP_SPEED = 1.0  # m/s


class HopperBackwards(hopper.Hopper):  # type: ignore[misc]  # dm_control carries no types
    """The hopper, rewarded for hopping backwards upright."""

    def __init__(self, random: np.random.RandomState) -> None:
        super().__init__(hopping=True, random=random)

    def get_reward(self, physics: Any) -> float:
        """[.6 <= height <= 2] T(speed <= -1; margin .5, value .5, linear), in [0, 1]."""
        standing = tolerance(physics.height(), bounds=_STANDING)
        hopping = tolerance(
            physics.speed(),
            bounds=(-math.inf, -_HOP_SPEED),
            margin=_HOP_SPEED / 2,
            value_at_margin=0.5,
            sigmoid="linear",
        )
        return float(standing * hopping)


def make_hopper_backwards(random: np.random.RandomState) -> control.Environment:
    """1000 control steps of 20 ms."""
    physics = hopper.Physics.from_xml_string(*hopper.get_model_and_assets())
    task = HopperBackwards(random)
    return control.Environment(physics, task, time_limit=_TIME_LIMIT, control_timestep=_CONTROL_TIMESTEP)
