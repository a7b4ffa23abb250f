"""PWM's dflex data: one file per task, a TensorDict of whole episodes that SHAC recorded (Georgiev et al. 2024).

Keys `obs` [E, L+1, O], `action` [E, L+1, A], `reward` [E, L+1]; nothing ends before its time. The published code
records the policy's output BEFORE the tanh that the simulator sees, so actions beyond +-1 are taken as such and
squashed here. What the published files hold could not be looked at: the record says what was done, and
`--squash tanh|none` decides otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from flowmbpo.data.convert.source import Index, Source, refuse_empty
from flowmbpo.data.foreign import Archive, open_archive
from flowmbpo.errors import DataError
from flowmbpo.spec import TaskInfo

Squash = Literal["auto", "tanh", "none"]


class DflexSource(Source):
    """One file of one task. Raises DataError on other shapes than the task's."""

    format: ClassVar[str] = "pwm-dflex"

    def __init__(self, path: Path, task: TaskInfo, squash: Squash = "auto") -> None:
        super().__init__(task.name, (task,), (path,))
        archive = open_archive(path)
        index = self.index(archive, 0)
        taken = (archive.floats("action", begin, end)[:, 1:] for begin, end in self.chunks(archive, index))
        self.squashed = squash == "tanh" or (squash == "auto" and any((np.abs(part) > 1.0).any() for part in taken))

    def options(self) -> dict[str, Any]:
        return {"squash": "tanh" if self.squashed else "none"}

    def index(self, archive: Archive, number: int) -> Index:
        archive.need("obs", "action", "reward")
        obs, action, reward = (archive.tensors[name].shape for name in ("obs", "action", "reward"))
        refuse_empty(archive)
        task = self.tasks[0]
        fitting = len(obs) == len(action) == 3 and obs[1] >= 2 and action[:2] == obs[:2]
        if not fitting or reward not in (obs[:2], (*obs[:2], 1)):
            raise DataError(
                f"{archive.path}: obs {list(obs)}, action {list(action)} and reward {list(reward)} are no episodes "
                "[E, L+1, ...] as PWM's dflex data have them."
            )
        if (obs[2], action[2]) != (task.obs_dim, task.action_dim):
            raise DataError(
                f"{archive.path}: wrong widths: {obs[2]} observations and {action[2]} actions, but {task.name} has "
                f"{task.obs_dim} and {task.action_dim}. Name the task that it is of with --task."
            )
        return Index(np.zeros(obs[0], np.int64), np.arange(obs[0]), np.full(obs[0], obs[1]))
