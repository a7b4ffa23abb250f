"""The 50 Meta-World tasks and their widths. Imports no torch and no simulator.

As TD-MPC2 runs them: goals in the observation, 200 control steps with a repeat of 2. The physics is
Meta-World's v3, TD-MPC2's data were made with v2: scores of the two are not comparable.
"""

from __future__ import annotations

from flowmbpo.envs.task_sets import MT50
from flowmbpo.spec import TaskInfo, timed_task

SCORE_LABEL = "Meta-World v3 physics"
"""What has to stand beside every score of these tasks."""

TASKS: tuple[TaskInfo, ...] = tuple(timed_task(name, "metaworld", (39, 4), steps=200, repeat=2) for name in MT50)
