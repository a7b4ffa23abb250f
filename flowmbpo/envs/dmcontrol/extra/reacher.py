"""reacher-three-easy and reacher-three-hard. Imports no torch.

Episode start, observation and reward are the suite's reacher's; the arm has three links (TD-MPC2, Hansen et al. 2024).
"""

from __future__ import annotations

from importlib import resources

import numpy as np
from dm_control.rl import control
from dm_control.suite import common, reacher

EASY_TARGET = 0.05  # m, radius
HARD_TARGET = 0.015  # m, radius
_TIME_LIMIT = 20.0  # s


def make_reacher_three(random: np.random.RandomState, target_radius: float) -> control.Environment:
    """1000 control steps of 20 ms."""
    model = resources.files(__package__).joinpath("reacher_three.xml").read_text(encoding="utf-8")
    physics = reacher.Physics.from_xml_string(model, common.ASSETS)
    # The suite's task sets this at an episode's start only; the reward depends on it from the beginning.
    physics.named.model.geom_size["target", 0] = target_radius
    task = reacher.Reacher(target_size=target_radius, random=random)
    return control.Environment(physics, task, time_limit=_TIME_LIMIT)
