"""Which environment runs which task of a set, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowmbpo.errors import ConfigError
from flowmbpo.spec import EnvSpec, TaskInfo


def assign_tasks(spec: EnvSpec, num_envs: int, seed: int, only: int | None = None) -> list[int]:
    """The task id of each of `num_envs` environments: `only`, or all: balanced to within one and shuffled by `seed`.

    Shuffled, because contiguous shares of environments go to worker processes and tasks differ in cost;
    which tasks get the odd ones is the seed's choice too. Raises ConfigError as `require_env_per_task` does.
    """
    if only is not None:
        return [only] * num_envs
    require_env_per_task(spec, num_envs)
    tasks = len(spec.tasks)
    rng = np.random.default_rng([seed, tasks, num_envs])
    whole, odd = divmod(num_envs, tasks)
    ids = np.concatenate((np.repeat(np.arange(tasks), whole), rng.permutation(tasks)[:odd]))
    return [int(task) for task in rng.permutation(ids)] if tasks > 1 else ids.tolist()


def require_env_per_task(spec: EnvSpec, num_envs: int) -> None:
    """Raises ConfigError where a task of the set would have no environment."""
    tasks = len(spec.tasks)
    if num_envs < tasks:
        raise ConfigError(
            f"task.num_envs: {num_envs} copies cannot hold the {tasks} tasks of '{spec.label}'; use at least {tasks}"
        )


def action_mask(tasks: Sequence[TaskInfo], action_dim: int) -> np.ndarray:
    """1 where environment i's task has that action, 0 in the padding: float32 [N, A]."""
    mask = np.zeros((len(tasks), action_dim), dtype=np.float32)
    for index, task in enumerate(tasks):
        mask[index, : task.action_dim] = 1.0
    return mask
