"""cup-spin. Imports no torch.

Model and observation are the suite's ball-in-cup's; episode start and reward are TD-MPC2's (Hansen et al. 2024).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from dm_control.rl import control
from dm_control.suite import ball_in_cup, base
from dm_control.utils.rewards import tolerance

_TIME_LIMIT = 20.0  # s
_CONTROL_TIMESTEP = 0.02  # s
_OUTSIDE_SHARE = 0.1  # of episodes start wherever the ball touches nothing, not only in the cup
_START_X = (-0.2, 0.2)  # m, joint coordinates
_START_Z = (0.2, 0.5)  # m, joint coordinates
_DISTANCE = 0.5  # m
_BALL_SPEED = 6.0  # m/s


class CupSpin(ball_in_cup.BallInCup):  # type: ignore[misc]  # dm_control carries no types
    """The ball in a cup, rewarded for swinging fast and far from the cup's target."""

    def initialize_episode(self, physics: Any) -> None:
        """Put the ball where it touches nothing and, in 90% of the episodes, into the target."""
        anywhere = self.random.uniform() < _OUTSIDE_SHARE
        placed = False
        while not placed:  # 2% of the positions are in the target, so some 50 are drawn
            physics.named.data.qpos["ball_x"] = self.random.uniform(*_START_X)
            physics.named.data.qpos["ball_z"] = self.random.uniform(*_START_Z)
            physics.after_reset()
            placed = physics.data.ncon == 0 and (anywhere or bool(physics.in_target()))
        base.Task.initialize_episode(self, physics)  # the suite's own start would draw again

    def get_reward(self, physics: Any) -> float:
        """(1 - in target) (T(d >= .5; margin .25, value .5, linear) + 2 T(v >= 6; margin 3, ...))/3, in [0, 1].

        d: ball to target in the plane of motion, m. v: the ball's speed, m/s.
        """
        far = _beyond(float(np.linalg.norm(physics.ball_to_target())), _DISTANCE)
        velocity = physics.named.data.qvel[["ball_x", "ball_z"]]  # world axes: the ball hangs on the world
        fast = _beyond(float(np.linalg.norm(velocity)), _BALL_SPEED)
        return float((1 - physics.in_target()) * (far + 2 * fast) / 3)


def make_cup_spin(random: np.random.RandomState) -> control.Environment:
    """1000 control steps of 20 ms."""
    physics = ball_in_cup.Physics.from_xml_string(*ball_in_cup.get_model_and_assets())
    task = CupSpin(random=random)
    return control.Environment(physics, task, time_limit=_TIME_LIMIT, control_timestep=_CONTROL_TIMESTEP)


def _beyond(value: float, threshold: float) -> float:
    """1 from `threshold` on, 1/2 at half of it, 0 at 0."""
    return float(
        tolerance(value, bounds=(threshold, math.inf), margin=threshold / 2, value_at_margin=0.5, sigmoid="linear")
    )
