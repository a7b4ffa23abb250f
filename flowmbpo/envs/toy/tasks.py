"""The toy tasks and their widths. Imports no torch."""

from __future__ import annotations

from flowmbpo.envs.spec import TaskInfo, timed_task

TASKS: tuple[TaskInfo, ...] = (
    timed_task("toy-pendulum-swingup", "toy", (3, 1), steps=200, repeat=2),
    timed_task("toy-cartpole-swingup", "toy", (5, 1), steps=1000, repeat=4),
)
