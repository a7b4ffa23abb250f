"""The dflex tasks and their widths. Imports no torch and no simulator.

dflex's half-cheetah does not start in its published version and is left out.
"""

from __future__ import annotations

from flowmbpo.spec import TaskInfo, timed_task

TASKS: tuple[TaskInfo, ...] = (
    timed_task("dflex-ant", "dflex", (37, 8), steps=1000, repeat=1, can_terminate=True),
    timed_task("dflex-hopper", "dflex", (11, 3), steps=1000, repeat=1, can_terminate=True),
    timed_task("dflex-anymal", "dflex", (49, 12), steps=1000, repeat=1, can_terminate=True),
    timed_task("dflex-humanoid", "dflex", (76, 21), steps=1000, repeat=1, can_terminate=True),
    timed_task("dflex-snu-humanoid", "dflex", (53, 152), steps=1000, repeat=1, can_terminate=True),
    timed_task("dflex-cartpole", "dflex", (5, 1), steps=240, repeat=1),
    timed_task("dflex-double-pendulum", "dflex", (6, 1), steps=240, repeat=1),
)
