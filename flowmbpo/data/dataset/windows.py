"""Puts windows of several tasks together into one batch."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from flowmbpo.data.batch import Batch
from flowmbpo.data.dataset.streams import Portion


@dataclass(frozen=True)
class Pick:
    """Some columns of a batch: windows number `position` of a portion, of the task with id `task`."""

    portion: Future[Portion]
    columns: npt.NDArray[np.int64]  # [b]
    position: npt.NDArray[np.int64]  # [b]
    task: int


@dataclass(frozen=True)
class BatchShape:
    """T transitions (the horizon), B windows, and the set's widths."""

    horizon: int
    size: int
    obs_dim: int
    action_dim: int


def assemble(shape: BatchShape, picks: list[Pick]) -> Batch:
    """The batch, on the CPU; waits for portions that are still being read and raises what reading raised.

    Narrower tasks are zero-padded at the end. Transitions behind an episode's end are marked and padded as
    `Batch` says: their rows are all that of the final observation, which stores no action and no reward.
    """
    obs = np.zeros((shape.horizon + 1, shape.size, shape.obs_dim), np.float32)
    action = np.zeros((shape.horizon, shape.size, shape.action_dim), np.float32)
    reward = np.zeros((shape.horizon, shape.size), np.float32)
    terminated = np.zeros((shape.horizon, shape.size), np.bool_)
    valid = np.zeros((shape.horizon, shape.size), np.bool_)
    task = np.zeros(shape.size, np.int64)
    steps = np.arange(shape.horizon + 1)[:, None]
    for pick in picks:
        portion, columns = pick.portion.result(), pick.columns
        first = portion.first[pick.position]
        last = portion.final[first]
        row = np.minimum(first + steps, last)  # [T + 1, b]
        valid[:, columns] = row[:-1] < last
        rows = portion.rows
        obs[:, columns, : rows.obs.shape[1]] = rows.obs[row]
        action[:, columns, : rows.action.shape[1]] = rows.action[row[:-1]]
        reward[:, columns] = rows.reward[row[:-1]]
        terminated[:, columns] = rows.terminated[row[:-1]] != 0
        task[columns] = pick.task
    return Batch(
        obs=torch.from_numpy(obs),
        action=torch.from_numpy(action),
        reward=torch.from_numpy(reward),
        terminated=torch.from_numpy(terminated),
        valid=torch.from_numpy(valid),
        task=torch.from_numpy(task),
    )
