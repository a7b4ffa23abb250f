"""pendulum-spin. Imports no torch.

Model, episode start and observation are the suite's pendulum's; the reward is TD-MPC2's (Hansen et al. 2024).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from dm_control.rl import control
from dm_control.suite import pendulum
from dm_control.utils.rewards import tolerance

_TIME_LIMIT = 20.0  # s
_SPIN_SPEED = 9.0  # rad/s


class PendulumSpin(pendulum.SwingUp):  # type: ignore[misc]  # dm_control carries no types
    """The pendulum, rewarded for spinning fast, either way."""

    def get_reward(self, physics: Any) -> float:
        """T(|omega| >= 9; margin 4.5, value .5, linear), in [0, 1]."""
        omega = abs(float(physics.angular_velocity()[0]))
        bounds = (_SPIN_SPEED, math.inf)
        return float(tolerance(omega, bounds=bounds, margin=_SPIN_SPEED / 2, value_at_margin=0.5, sigmoid="linear"))


def make_pendulum_spin(random: np.random.RandomState) -> control.Environment:
    """1000 control steps of 20 ms."""
    physics = pendulum.Physics.from_xml_string(*pendulum.get_model_and_assets())
    return control.Environment(physics, PendulumSpin(random=random), time_limit=_TIME_LIMIT)
