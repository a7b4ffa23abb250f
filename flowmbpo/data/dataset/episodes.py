"""Episodes as they are handed to a writer: checked, and laid out in rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flowmbpo.data.dataset.manifest import TaskRecord
from flowmbpo.data.dataset.shard import EPISODE, Rows
from flowmbpo.errors import DataError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Episodes:
    """E episodes of one task and L transitions each, own widths; letters as in `shard`."""

    obs: Floats  # [E, L + 1, O]
    action: Floats  # [E, L, A]
    reward: Floats  # [E, L]
    terminated: npt.NDArray[np.bool_]  # [E, L]
    ids: npt.NDArray[np.int64]  # [E]
    source: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def length(self) -> int:
        """Transitions of each episode."""
        return int(self.reward.shape[1])

    def part(self, first: int, end: int | None = None) -> Episodes:
        """Episodes `first` to before `end`."""
        some = slice(first, end)
        return Episodes(
            self.obs[some], self.action[some], self.reward[some], self.terminated[some], self.ids[some], self.source
        )

    def rows(self) -> Rows:
        """[E * (L + 1), O + A + 2]: obs, action, reward, terminated; see `shard`."""
        obs_dim = self.obs.shape[2]
        rows = np.zeros((len(self), self.length + 1, obs_dim + self.action.shape[2] + 2), np.float32)
        rows[..., :obs_dim] = self.obs
        rows[:, :-1, obs_dim:-2] = self.action
        rows[:, :-1, -2] = self.reward
        rows[:, :-1, -1] = self.terminated
        return rows.reshape(-1, rows.shape[2])

    def index(self) -> npt.NDArray[Any]:
        """One EPISODE record each."""
        index = np.empty(len(self), EPISODE)
        index["length"] = self.length
        index["id"] = self.ids
        index["return"] = self.reward.sum(1, dtype=np.float64)
        index["source"] = self.source
        return index


def check_episodes(task: TaskRecord, episodes: Episodes) -> None:
    """Raises DataError naming task, episode, step, field and value where a dataset cannot hold one of them."""
    count, length = len(episodes), episodes.length if episodes.reward.ndim == 2 else 0
    if length < 1:
        raise DataError(
            f"task {task.name}: reward has the shape {episodes.reward.shape}, not [episodes, transitions] "
            "with at least 1 transition: leave out episodes that never took a step"
        )
    expected = {
        "obs": (count, length + 1, task.obs_dim),
        "action": (count, length, task.action_dim),
        "reward": (count, length),
        "terminated": (count, length),
    }
    for field, shape in expected.items():
        found = getattr(episodes, field).shape
        if found != shape:
            raise DataError(
                f"task {task.name}: {field} has the shape {found}, expected {shape} for {count} episodes of "
                f"{length} transitions: the task has obs_dim {task.obs_dim} and action_dim {task.action_dim}"
            )
    for field in ("obs", "action", "reward"):
        values = getattr(episodes, field)
        finite = np.isfinite(values)
        if not finite.all():
            episode, step, *column = (int(place) for place in np.argwhere(~finite)[0])
            where = f" column {column[0]}" if column else ""
            raise DataError(
                f"task {task.name}, episode {episodes.ids[episode]}, step {step}: {field}{where} is "
                f"{values[(episode, step, *column)]}: only finite values are stored; leave the episode out or mend it"
            )
    early = episodes.terminated[:, :-1]
    if early.any():
        episode, step = (int(place) for place in np.argwhere(early)[0])
        raise DataError(
            f"task {task.name}, episode {episodes.ids[episode]}, step {step}: terminated before its last transition "
            f"({length - 1}): an episode ends where it terminates, cut it there"
        )
    if episodes.source < 0:
        raise DataError(f"task {task.name}: source {episodes.source} is no index into the manifest's sources")
