"""The rewarped tasks and their widths. Imports no torch and no simulator.

Of rewarped's ports of dflex's tasks those that work in 1.3.3. Its Anymal and A1 are templates without
observations or rewards; its hopper observes 12 numbers where its reward and termination expect 11, so
that its position counts as its height and its foot's angle as its speed.
"""

from __future__ import annotations

from flowmbpo.spec import TaskInfo, timed_task

TASKS: tuple[TaskInfo, ...] = (
    timed_task("rewarped-ant", "rewarped", (37, 8), steps=1000, repeat=1, can_terminate=True),
    timed_task("rewarped-humanoid", "rewarped", (76, 21), steps=1000, repeat=1, can_terminate=True),
    timed_task("rewarped-cartpole", "rewarped", (5, 1), steps=240, repeat=1),
)
