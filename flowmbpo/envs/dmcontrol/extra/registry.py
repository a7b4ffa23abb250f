"""Every task that the Control Suite itself does not ship, by its name. Imports dm_control, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np
from dm_control.rl import control

from flowmbpo.envs.dmcontrol.extra.cheetah import (
    BACK_FOOT,
    FRONT_FOOT,
    CheetahBackwards,
    CheetahJump,
    CheetahOneFoot,
    make_cheetah,
)
from flowmbpo.envs.dmcontrol.extra.cup import make_cup_spin
from flowmbpo.envs.dmcontrol.extra.hopper import make_hopper_backwards
from flowmbpo.envs.dmcontrol.extra.pendulum import make_pendulum_spin
from flowmbpo.envs.dmcontrol.extra.reacher import EASY_TARGET, HARD_TARGET, make_reacher_three
from flowmbpo.envs.dmcontrol.extra.walker import RUN_SPEED, WALK_SPEED, make_walker_backwards

EnvironmentFactory = Callable[[np.random.RandomState], control.Environment]

# Running on the front foot lifts the back one, and the other way round.
EXTRA_ENVIRONMENTS: Mapping[str, EnvironmentFactory] = MappingProxyType(
    {
        "walker-walk-backwards": partial(make_walker_backwards, speed=WALK_SPEED),
        "walker-run-backwards": partial(make_walker_backwards, speed=RUN_SPEED),
        "cheetah-run-backwards": partial(make_cheetah, task=CheetahBackwards),
        "cheetah-run-front": partial(make_cheetah, task=partial(CheetahOneFoot, BACK_FOOT)),
        "cheetah-run-back": partial(make_cheetah, task=partial(CheetahOneFoot, FRONT_FOOT)),
        "cheetah-jump": partial(make_cheetah, task=CheetahJump),
        "hopper-hop-backwards": make_hopper_backwards,
        "reacher-three-easy": partial(make_reacher_three, target_radius=EASY_TARGET),
        "reacher-three-hard": partial(make_reacher_three, target_radius=HARD_TARGET),
        "cup-spin": make_cup_spin,
        "pendulum-spin": make_pendulum_spin,
    }
)
"""What makes the dm_control environment of a task, given its random state."""
