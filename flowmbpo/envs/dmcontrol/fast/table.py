"""Which tasks have a fast reader. Imports no torch and no simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from flowmbpo.envs.dmcontrol.fast.acrobot import Acrobot
from flowmbpo.envs.dmcontrol.fast.cartpole import Cartpole
from flowmbpo.envs.dmcontrol.fast.cheetah import Cheetah, CheetahJump, CheetahOneFoot
from flowmbpo.envs.dmcontrol.fast.cup import Cup, CupSpin
from flowmbpo.envs.dmcontrol.fast.finger import FingerSpin, FingerTurn
from flowmbpo.envs.dmcontrol.fast.fish import FishSwim, FishUpright
from flowmbpo.envs.dmcontrol.fast.hopper import Hopper
from flowmbpo.envs.dmcontrol.fast.pendulum import Pendulum, PendulumSpin
from flowmbpo.envs.dmcontrol.fast.reacher import Reacher
from flowmbpo.envs.dmcontrol.fast.task import FastTask
from flowmbpo.envs.dmcontrol.fast.walker import Walker

FAST_TASKS: Mapping[str, Callable[[Any, Any], FastTask]] = MappingProxyType(
    {
        "acrobot-swingup": partial(Acrobot, sparse=False),
        "acrobot-swingup-sparse": partial(Acrobot, sparse=True),
        "cartpole-balance": partial(Cartpole, sparse=False),
        "cartpole-balance-sparse": partial(Cartpole, sparse=True),
        "cartpole-swingup": partial(Cartpole, sparse=False),
        "cartpole-swingup-sparse": partial(Cartpole, sparse=True),
        "cartpole-three-poles": partial(Cartpole, sparse=False),
        "cartpole-two-poles": partial(Cartpole, sparse=False),
        "cheetah-jump": CheetahJump,
        "cheetah-run": partial(Cheetah, speed=10.0),
        "cheetah-run-back": partial(CheetahOneFoot, lifted="ffoot"),
        "cheetah-run-backwards": partial(Cheetah, speed=-8.0),
        "cheetah-run-front": partial(CheetahOneFoot, lifted="bfoot"),
        "cup-catch": Cup,
        "cup-spin": CupSpin,
        "finger-spin": FingerSpin,
        "finger-turn-easy": FingerTurn,
        "finger-turn-hard": FingerTurn,
        "fish-swim": FishSwim,
        "fish-upright": FishUpright,
        "hopper-hop": partial(Hopper, speed=2.0),
        "hopper-hop-backwards": partial(Hopper, speed=-1.0),
        "hopper-stand": partial(Hopper, speed=0.0),
        "pendulum-spin": PendulumSpin,
        "pendulum-swingup": Pendulum,
        "reacher-easy": Reacher,
        "reacher-hard": Reacher,
        "reacher-three-easy": Reacher,
        "reacher-three-hard": Reacher,
        "walker-run": partial(Walker, speed=8.0),
        "walker-run-backwards": partial(Walker, speed=-8.0),
        "walker-stand": partial(Walker, speed=0.0),
        "walker-walk": partial(Walker, speed=1.0),
        "walker-walk-backwards": partial(Walker, speed=-1.0),
    }
)
"""Task name to a reader of (MjModel, MjData). Tasks not listed are read through dm_control."""
