"""Where the dm_control environment of a task comes from, and its fast reader. dm_control is imported late."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol import balancers, reachers, runners
from flowmbpo.envs.dmcontrol.reading import Reader
from flowmbpo.errors import EnvironmentUnavailableError

_BY_READER: tuple[tuple[Reader, str], ...] = (
    (partial(balancers.Acrobot, sparse=False), "acrobot-swingup"),
    (partial(balancers.Acrobot, sparse=True), "acrobot-swingup-sparse"),
    (
        partial(balancers.Cartpole, sparse=False),
        "cartpole-balance cartpole-swingup cartpole-three-poles cartpole-two-poles",
    ),
    (partial(balancers.Cartpole, sparse=True), "cartpole-balance-sparse cartpole-swingup-sparse"),
    (balancers.PendulumSpin, "pendulum-spin"),
    (balancers.PendulumSwingUp, "pendulum-swingup"),
    (runners.CheetahJump, "cheetah-jump"),
    (partial(runners.Cheetah, speed=10.0), "cheetah-run"),
    (partial(runners.Cheetah, speed=-8.0), "cheetah-run-backwards"),
    (partial(runners.CheetahOneFoot, lifted="ffoot"), "cheetah-run-back"),
    (partial(runners.CheetahOneFoot, lifted="bfoot"), "cheetah-run-front"),
    (partial(runners.HopperGait, speed=2.0), "hopper-hop"),
    (partial(runners.HopperGait, speed=-1.0), "hopper-hop-backwards"),
    (partial(runners.HopperGait, speed=0.0), "hopper-stand"),
    (partial(runners.Walker, speed=8.0), "walker-run"),
    (partial(runners.Walker, speed=-8.0), "walker-run-backwards"),
    (partial(runners.Walker, speed=0.0), "walker-stand"),
    (partial(runners.Walker, speed=1.0), "walker-walk"),
    (partial(runners.Walker, speed=-1.0), "walker-walk-backwards"),
    (reachers.Cup, "cup-catch"),
    (reachers.CupSpin, "cup-spin"),
    (reachers.FingerSpin, "finger-spin"),
    (reachers.FingerTurn, "finger-turn-easy finger-turn-hard"),
    (reachers.FishSwim, "fish-swim"),
    (reachers.FishUpright, "fish-upright"),
    (reachers.Reacher, "reacher-easy reacher-hard reacher-three-easy reacher-three-hard"),
)
READERS = MappingProxyType({name: reader for reader, names in _BY_READER for name in names.split()})
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
        "reacher-three-easy": partial(reachers.make_three_links, 0.05),
        "reacher-three-hard": partial(reachers.make_three_links, 0.015),
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
    if "in1d" not in vars(suite.quadruped.np):  # it calls this, which numpy 2.4 dropped; numpy is left alone
        suite.quadruped.np = ModuleType("numpy", "numpy, and in1d")
        vars(suite.quadruped.np).update(vars(np), in1d=np.isin)
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
            task.initialize_episode = partial(reachers.start_spin, task)
    return environment
