"""What a task is, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class TaskInfo:
    """One task as the agent sees it.

    `simulator` is the backend that really runs ('toy', 'dmcontrol', ...); `episode_length` counts
    agent steps (after `action_repeat`); `discount` is the task's own gamma,
    clip((L/5 - 1)/(L/5), .95, .995) for episode length L (TD-MPC2).
    """

    name: str
    simulator: str
    obs_dim: int
    action_dim: int
    episode_length: int
    action_repeat: int
    discount: float
    can_terminate: bool = False

    @property
    def plain_name(self) -> str:
        """The name without what a perturbation added to it."""
        return self.name.partition("+")[0]


@dataclass(frozen=True)
class EnvSpec:
    """The task set of a vector environment; its order is the task id. A single task is a set of one.

    `name` is the set's own ('mt30'); a single task goes by its task's.
    """

    tasks: tuple[TaskInfo, ...]
    name: str = ""

    @property
    def label(self) -> str:
        """What runs, as paths, checkpoints and reports name it."""
        return self.name or self.tasks[0].name

    @cached_property
    def obs_dim(self) -> int:
        """Widest observation; narrower ones are zero-padded at the end."""
        return max(task.obs_dim for task in self.tasks)

    @cached_property
    def action_dim(self) -> int:
        """Widest action; the padded dimensions of narrower ones are masked."""
        return max(task.action_dim for task in self.tasks)


def task_discount(episode_length: int) -> float:
    """clip((L/5 - 1)/(L/5), .95, .995), L in agent steps (TD-MPC2, Hansen et al. 2024)."""
    fifth = episode_length / 5
    return min(max((fifth - 1) / fifth, 0.95), 0.995)


def timed_task(
    name: str, simulator: str, widths: tuple[int, int], steps: int, repeat: int, *, can_terminate: bool = False
) -> TaskInfo:
    """A task of `widths` (observation, action) with a time limit of `steps` control steps.

    `repeat` control (or physics) steps make an agent step.
    """
    length = steps // repeat
    return TaskInfo(name, simulator, *widths, length, repeat, task_discount(length), can_terminate)
