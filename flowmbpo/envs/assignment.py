"""Which copy runs which task of a set, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowmbpo.envs.contract import VectorEnv
from flowmbpo.errors import ConfigError
from flowmbpo.spec import EnvSpec, TaskInfo


def assign_tasks(spec: EnvSpec, num_envs: int, seed: int) -> list[int]:
    """The task id of each of `num_envs` copies: balanced to within one copy, and shuffled by `seed`.

    Shuffled, because contiguous shares of copies go to worker processes and tasks differ in cost;
    which tasks get the odd copies is the seed's choice too. Raises ConfigError as `check_copies` does.
    """
    check_copies(spec, num_envs)
    tasks = len(spec.tasks)
    rng = np.random.default_rng([seed, tasks, num_envs])
    whole, odd = divmod(num_envs, tasks)
    ids = np.concatenate((np.repeat(np.arange(tasks), whole), rng.permutation(tasks)[:odd]))
    return [int(task) for task in rng.permutation(ids)] if tasks > 1 else ids.tolist()


def lane_tasks(spec: EnvSpec, lanes: int, seed: int, only: int | None) -> list[int]:
    """The task id of each lane of a replay buffer: the one member that runs, or as `assign_tasks` has it."""
    return assign_tasks(spec, lanes, seed) if only is None else [only] * lanes


def check_copies(spec: EnvSpec, num_envs: int) -> None:
    """Raises ConfigError where a task of the set would have no copy."""
    tasks = len(spec.tasks)
    if num_envs < tasks:
        raise ConfigError(
            f"task.num_envs: {num_envs} copies cannot hold the {tasks} tasks of '{spec.label}'; use at least {tasks}"
        )


def action_mask(tasks: Sequence[TaskInfo], action_dim: int) -> np.ndarray:
    """1 where copy i's task has that action, 0 in the padding: float32 [N, A]."""
    mask = np.zeros((len(tasks), action_dim), dtype=np.float32)
    for index, task in enumerate(tasks):
        mask[index, : task.action_dim] = 1.0
    return mask


def check_same_tasks(env: VectorEnv, state: dict[str, Any]) -> None:
    """Refuse (ValueError) a saved state of another task or set, or of another assignment to copies."""
    saved = (state["task"], len(state["episode"]))
    if saved != (env.spec.label, env.num_envs):
        raise ValueError(
            f"the saved environment is {saved[1]} x '{saved[0]}'; this one is {env.num_envs} x '{env.spec.label}'"
        )
    ids = state.get("task_ids", env.task_ids)  # states of single tasks were once saved without
    if ids.tolist() != env.task_ids.tolist():
        raise ValueError(
            f"the saved environment assigns the tasks of '{env.spec.label}' to other copies than this one: "
            "resume with the seed it was started with"
        )
