"""The locomotion tasks on MuJoCo and their widths. Imports no torch and no simulator."""

from __future__ import annotations

from flowmbpo.spec import TaskInfo, timed_task

TASKS: tuple[TaskInfo, ...] = (
    timed_task("mujoco-ant", "mujoco", (37, 8), steps=1000, repeat=1, can_terminate=True),
    timed_task("mujoco-hopper", "mujoco", (11, 3), steps=1000, repeat=1, can_terminate=True),
)
