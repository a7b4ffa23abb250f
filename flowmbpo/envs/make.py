"""From a task's config to a running vector environment."""

from __future__ import annotations

import os
import sys
from functools import partial

from flowmbpo.envs.base import VectorEnv
from flowmbpo.envs.config import TaskConfig
from flowmbpo.envs.dmcontrol.simulator import DMControlSimulator
from flowmbpo.envs.spec import EnvSpec, TaskInfo
from flowmbpo.envs.tasks import NO_SIMULATOR, task_info
from flowmbpo.envs.toy.systems import toy_system
from flowmbpo.envs.toy.vector import ToyVectorEnv
from flowmbpo.envs.workers.vector import WorkerVectorEnv
from flowmbpo.errors import EnvironmentUnavailableError


def make_env(config: TaskConfig, num_envs: int | None = None, workers: int | None = None) -> VectorEnv:
    """The environment that `config` describes; `num_envs` and `workers` override it.

    Tasks of a simulator get one worker process per core unless told otherwise, never more than
    copies; `workers=0` keeps them in this process. Raises ConfigError on an unknown task or
    backend, EnvironmentUnavailableError where nothing here runs the task.
    """
    task = task_info(config.name, config.backend)
    count = config.num_envs if num_envs is None else num_envs
    if workers is None:
        workers = config.workers
    match task.simulator:
        case "toy":
            return ToyVectorEnv(toy_system(task), count)
        case "dmcontrol":
            make = partial(DMControlSimulator, task.name, task.action_repeat)
            return WorkerVectorEnv(EnvSpec((task,)), [make], [0] * count, cores() if workers is None else workers)
        case _:
            raise _unavailable(task)


def cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _unavailable(task: TaskInfo) -> EnvironmentUnavailableError:
    assert task.simulator == NO_SIMULATOR, task.simulator
    return EnvironmentUnavailableError(
        f"task.name: no simulator for '{task.name}' is part of this version yet; its presets can be checked with "
        "`--dry-run`, and toy-pendulum-swingup, toy-cartpole-swingup, walker-stand or cheetah-run train now."
    )
