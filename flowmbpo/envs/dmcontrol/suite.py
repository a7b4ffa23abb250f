"""Where the dm_control environment of a task comes from, and its fast reader. dm_control is imported late."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol import (
    acrobot,
    cartpole,
    cheetah,
    cup,
    finger,
    fish,
    hopper,
    pendulum,
    reacher,
    walker,
)
from flowmbpo.envs.dmcontrol.reading import Reader
from flowmbpo.errors import EnvironmentUnavailableError

READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "acrobot-swingup": partial(acrobot.Acrobot, sparse=False),
        "acrobot-swingup-sparse": partial(acrobot.Acrobot, sparse=True),
        "cartpole-balance": partial(cartpole.Cartpole, sparse=False),
        "cartpole-balance-sparse": partial(cartpole.Cartpole, sparse=True),
        "cartpole-swingup": partial(cartpole.Cartpole, sparse=False),
        "cartpole-swingup-sparse": partial(cartpole.Cartpole, sparse=True),
        "cartpole-three-poles": partial(cartpole.Cartpole, sparse=False),
        "cartpole-two-poles": partial(cartpole.Cartpole, sparse=False),
        "cheetah-jump": cheetah.CheetahJump,
        "cheetah-run": partial(cheetah.Cheetah, speed=10.0),
        "cheetah-run-back": partial(cheetah.CheetahOneFoot, lifted="ffoot"),
        "cheetah-run-backwards": partial(cheetah.Cheetah, speed=-8.0),
        "cheetah-run-front": partial(cheetah.CheetahOneFoot, lifted="bfoot"),
        "cup-catch": cup.Cup,
        "cup-spin": cup.CupSpin,
        "finger-spin": finger.FingerSpin,
        "finger-turn-easy": finger.FingerTurn,
        "finger-turn-hard": finger.FingerTurn,
        "fish-swim": fish.FishSwim,
        "fish-upright": fish.FishUpright,
        "hopper-hop": partial(hopper.HopperGait, speed=2.0),
        "hopper-hop-backwards": partial(hopper.HopperGait, speed=-1.0),
        "hopper-stand": partial(hopper.HopperGait, speed=0.0),
        "pendulum-spin": pendulum.PendulumSpin,
        "pendulum-swingup": pendulum.PendulumSwingUp,
        "reacher-easy": reacher.Reacher,
        "reacher-hard": reacher.Reacher,
        "reacher-three-easy": reacher.Reacher,
        "reacher-three-hard": reacher.Reacher,
        "walker-run": partial(walker.Walker, speed=8.0),
        "walker-run-backwards": partial(walker.Walker, speed=-8.0),
        "walker-stand": partial(walker.Walker, speed=0.0),
        "walker-walk": partial(walker.Walker, speed=1.0),
        "walker-walk-backwards": partial(walker.Walker, speed=-1.0),
    }
)
"""Task name to its fast reader. Tasks not listed are read through dm_control."""

EXTRA_TASKS: Mapping[str, str | Callable[[np.random.RandomState], Any]] = MappingProxyType(
    {
        "cheetah-jump": "cheetah-run",
        "cheetah-run-back": "cheetah-run",
        "cheetah-run-backwards": "cheetah-run",
        "cheetah-run-front": "cheetah-run",
        "cup-spin": "cup-catch",
        "hopper-hop-backwards": "hopper-hop",
        "pendulum-spin": "pendulum-swingup",
        "reacher-three-easy": partial(reacher.make_three_links, 0.05),
        "reacher-three-hard": partial(reacher.make_three_links, 0.015),
        "walker-run-backwards": "walker-run",
        "walker-walk-backwards": "walker-walk",
    }
)
"""TD-MPC2's tasks that the suite lacks (Hansen et al. 2024): the suite's task whose model, episode start, observation
and time limit they have under the reward of their fast reader, or what makes their environment."""

_DOMAINS = {"cup": "ball_in_cup"}  # the field's short name


def suite_key(name: str) -> tuple[str, str]:
    """dm_control's domain and task behind a task's name: 'cup-catch' is ('ball_in_cup', 'catch')."""
    domain, _, task = name.partition("-")
    return _DOMAINS.get(domain, domain), task.replace("-", "_")


def _restore_in1d(quadruped: Any) -> None:
    """Give dm_control 1.0.28's quadruped the name that it still calls and numpy 2.4 dropped; numpy is left alone."""
    if "in1d" not in vars(quadruped.np):
        quadruped.np = ModuleType("numpy", "numpy, and in1d")
        vars(quadruped.np).update(vars(np), in1d=np.isin)


def load_suite_task(name: str) -> Any:
    """The dm_control environment of a task, of the suite or one of the extra ones.

    Its random state starts at seed 0; whoever steps it seeds `environment.task.random`. Raises
    EnvironmentUnavailableError where dm_control is missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*DISPLAY")  # of glfw, which nothing here needs
            from dm_control import suite
    except ImportError as error:
        raise EnvironmentUnavailableError(
            f"'{name}' needs dm_control, which cannot be imported here ({error}); "
            "install dm-control==1.0.28 with mujoco==3.3.0"
        ) from error
    _restore_in1d(suite.quadruped)
    random = np.random.RandomState(0)
    basis = EXTRA_TASKS.get(name, name)
    if not isinstance(basis, str):
        return basis(random)
    domain, key = suite_key(basis)
    environment = suite.load(domain, key, task_kwargs={"random": random})
    if name in EXTRA_TASKS:
        physics, task = environment.physics, environment.task
        reader = READERS[name](physics.model.ptr, physics.data.ptr)
        task.get_reward = lambda _: reader.reward()
        if name == "cup-spin":
            task.initialize_episode = partial(cup.start_spin, task)
    return environment
