"""Made-up episodes whose values say where they belong."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Widths:
    name: str
    obs_dim: int
    action_dim: int


TASKS = (Widths("reacher-easy", 6, 2), Widths("walker-stand", 24, 6))


def make_episode(task, length, number):
    """Values that say where they belong: obs = number + t/1000 + column/100000."""
    rng = np.random.default_rng(number)
    step = np.arange(length + 1)[:, None]
    obs = (number + step / 1000 + np.arange(task.obs_dim) / 100_000).astype(np.float32)
    action = rng.uniform(-1, 1, (length, task.action_dim)).astype(np.float32)
    reward = rng.uniform(0, 1, length).astype(np.float32)
    terminated = np.zeros(length, bool)
    terminated[-1] = number % 2 == 1
    return obs, action, reward, terminated


def fill(writer, tasks, lengths):
    """Episodes of these lengths, in turn for every task; their ids count up."""
    number = 0
    for length in lengths:
        for task_id, task in enumerate(tasks):
            writer.add(task_id, *make_episode(task, length, number), episode_id=number)
            number += 1
