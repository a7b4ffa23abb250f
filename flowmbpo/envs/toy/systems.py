"""The toy system behind each `toy-*` task."""

from __future__ import annotations

from types import MappingProxyType

from flowmbpo.envs.spec import TaskInfo
from flowmbpo.envs.toy.cartpole import CartPole
from flowmbpo.envs.toy.pendulum import Pendulum
from flowmbpo.envs.toy.system import ToySystem

_SYSTEMS = MappingProxyType({"toy-pendulum-swingup": Pendulum, "toy-cartpole-swingup": CartPole})


def toy_system(task: TaskInfo) -> ToySystem:
    """The system that a toy task runs."""
    return _SYSTEMS[task.name](task)
