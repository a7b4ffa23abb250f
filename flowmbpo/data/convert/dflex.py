"""PWM's dflex data: one file per task, a TensorDict of whole episodes that SHAC recorded (Georgiev et al. 2024).

Keys `obs` [E, L+1, O], `action` [E, L+1, A], `reward` [E, L+1]; nothing ends before its time. The published code
records the policy's output BEFORE the tanh that the simulator sees, so actions beyond +-1 are taken as such and
squashed here. What the published files hold could not be looked at: the record says what was done, and
`--squash tanh|none` decides otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from flowmbpo.data.convert.episodes import Place, Portion, TaskColumns, realign
from flowmbpo.data.convert.selection import Selection
from flowmbpo.data.convert.source import PORTION_BYTES, Source, refuse_empty
from flowmbpo.data.foreign import Archive, open_archive
from flowmbpo.errors import DataError

Squash = Literal["auto", "tanh", "none"]


class DflexSource(Source):
    """One file of one task. Raises DataError on other shapes than the task's."""

    format: ClassVar[str] = "pwm-dflex"

    def __init__(self, path: Path, task: TaskColumns, squash: Squash = "auto") -> None:
        super().__init__(task.name, (task,), (path,))
        archive = open_archive(path)
        self._check(archive)
        self.squashed = squash == "tanh" or (squash == "auto" and _beyond_one(archive))

    def options(self) -> dict[str, Any]:
        return {"squash": "tanh" if self.squashed else "none"}

    def count(self, number: int) -> list[int]:
        return [open_archive(self.files[number]).tensors["obs"].shape[0]]

    def portions(self, archive: Archive, number: int, start: int, selection: Selection) -> Iterator[Portion]:
        self._check(archive)
        task = self.tasks[0]
        episodes, rows, _ = archive.tensors["obs"].shape
        size = max(1, PORTION_BYTES // (4 * rows * (task.obs_dim + task.action_dim + 1)))
        for begin in range(start, episodes, size):
            end = min(begin + size, episodes)
            chosen = np.flatnonzero(selection.choose(np.zeros(end - begin, dtype=np.int64)))
            blocks = []
            if len(chosen):
                taken = archive.floats("action", begin, end)[chosen]
                blocks.append(
                    realign(
                        0,
                        task,
                        Place(archive.path, begin + chosen),
                        chosen,
                        archive.floats("obs", begin, end)[chosen],
                        np.tanh(taken) if self.squashed else taken,
                        archive.floats("reward", begin, end).reshape(end - begin, rows)[chosen],
                    )
                )
            yield Portion(end, end - begin, blocks)

    def _check(self, archive: Archive) -> None:
        archive.need("obs", "action", "reward")
        obs, action, reward = (archive.tensors[name].shape for name in ("obs", "action", "reward"))
        refuse_empty(archive)
        task = self.tasks[0]
        if (
            {len(obs), len(action)} != {3}
            or obs[1] < 2
            or action[:2] != obs[:2]
            or reward not in (obs[:2], (*obs[:2], 1))
        ):
            raise DataError(
                f"{archive.path}: obs {list(obs)}, action {list(action)} and reward {list(reward)} are no episodes "
                "[E, L+1, ...] as PWM's dflex data have them."
            )
        if (obs[2], action[2]) != (task.obs_dim, task.action_dim):
            raise DataError(
                f"{archive.path}: wrong widths: {obs[2]} observations and {action[2]} actions, but {task.name} has "
                f"{task.obs_dim} and {task.action_dim}. Name the task that it is of with --task."
            )


def _beyond_one(archive: Archive) -> bool:
    """Whether any action that was taken lies outside [-1, 1]; read in portions."""
    episodes, rows, width = archive.tensors["action"].shape
    size = max(1, PORTION_BYTES // (4 * rows * width))
    portions = (archive.floats("action", begin, begin + size)[:, 1:] for begin in range(0, episodes, size))
    return any(bool((np.abs(portion) > 1.0).any()) for portion in portions)
