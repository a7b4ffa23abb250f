"""What a dataset holds, in figures: for people who want to look at it before they learn from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowmbpo.data.offline.reader import Dataset
from flowmbpo.data.offline.shard import CHUNK_ROWS, open_shard

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SLICE_ROWS = 16 * CHUNK_ROWS  # read at once


@dataclass(frozen=True)
class Ranges:
    """Extremes over all transitions of a task (`obs` with final observations)."""

    obs: tuple[float, float]
    action: tuple[float, float]
    reward: tuple[float, float]
    obs_by_column: tuple[tuple[float, float], ...]  # (least, greatest) of each
    terminated: int  # episodes that ended by themselves


@dataclass(frozen=True)
class TaskSummary:
    """One task. Returns are sums of rewards over an episode, lengths its transitions."""

    name: str
    obs_dim: int
    action_dim: int
    episodes: int
    transitions: int
    lengths: tuple[int, int]  # least, greatest; (0, 0) without episodes
    mean_reward: float  # per transition; nan without episodes
    return_mean: float
    return_min: float
    return_max: float
    return_quantiles: tuple[float, ...]  # at QUANTILES
    sources: dict[int, int]  # episodes by their source's index in the manifest
    source_returns: dict[int, float]  # mean return of each source
    ranges: Ranges | None  # where rows were asked for and there are some


def summarise(dataset: Dataset, *, rows: bool = True) -> tuple[TaskSummary, ...]:
    """Figures of every task, in the order of ids. `rows` reads all rows too, for ranges and endings.

    Without rows only the indices are read: seconds for any set. Raises DataError on damage.
    """
    return tuple(summarise_task(dataset, task, rows=rows) for task in range(len(dataset.tasks)))


def summarise_task(dataset: Dataset, task: int, *, rows: bool = True) -> TaskSummary:
    """Figures of the task with this id; see `summarise`."""
    record = dataset.tasks[task]
    table = dataset.episode_table(task)
    length, returns = table["length"], table["return"]
    filled = len(table) > 0
    sources = np.unique(table["source"]).tolist()
    nan = float("nan")
    return TaskSummary(
        name=record.name,
        obs_dim=record.obs_dim,
        action_dim=record.action_dim,
        episodes=len(table),
        transitions=int(length.sum()),
        lengths=(int(length.min()), int(length.max())) if filled else (0, 0),
        mean_reward=record.reward_sum / record.transitions if filled else nan,
        return_mean=float(returns.mean()) if filled else nan,
        return_min=float(returns.min()) if filled else nan,
        return_max=float(returns.max()) if filled else nan,
        return_quantiles=tuple(np.quantile(returns, QUANTILES).tolist()) if filled else (nan,) * len(QUANTILES),
        sources={source: int((table["source"] == source).sum()) for source in sources},
        source_returns={source: float(returns[table["source"] == source].mean()) for source in sources},
        ranges=_read_ranges(dataset, task) if rows and filled else None,
    )


def _read_ranges(dataset: Dataset, task: int) -> Ranges:
    record = dataset.tasks[task]
    obs = _Extremes(record.obs_dim)
    action = _Extremes(record.action_dim)
    reward = _Extremes(1)
    terminated = 0
    for path in dataset.shard_paths(task):
        with open_shard(path) as file:
            # Final observations have no action and no reward: their zeros are none of the task's.
            final = file["episodes/start"][:] + file["episodes/length"][:]
            for first in range(0, len(file["obs"]), SLICE_ROWS):
                some = slice(first, first + SLICE_ROWS)
                left = np.ones(len(file["reward"][some]), np.bool_)
                left[final[(final >= first) & (final < first + len(left))] - first] = False
                obs.add(file["obs"][some])
                action.add(file["action"][some][left])
                reward.add(file["reward"][some][left, None])
                terminated += int(file["terminated"][some].sum())
    columns = tuple(zip(obs.least.tolist(), obs.greatest.tolist(), strict=True))
    return Ranges(obs.all(), action.all(), reward.all(), columns, terminated)


class _Extremes:
    """Least and greatest value of each column of what was added."""

    def __init__(self, columns: int) -> None:
        self.least = np.full(columns, np.inf)
        self.greatest = np.full(columns, -np.inf)

    def add(self, values: npt.NDArray[np.float32]) -> None:
        if len(values):
            self.least = np.minimum(self.least, values.min(0))
            self.greatest = np.maximum(self.greatest, values.max(0))

    def all(self) -> tuple[float, float]:
        return float(self.least.min()), float(self.greatest.max())
