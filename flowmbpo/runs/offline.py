"""A run's dataset: opened, checked against the run's tasks, and handed out in batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.dataset.sampler import WindowSampler
from flowmbpo.data.probe import fill_with_episodes
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.envs.assignment import assign_tasks
from flowmbpo.envs.resolve import ResolvedTask
from flowmbpo.models.agent import Agent
from flowmbpo.training.batches import DatasetBatches

DIAGNOSED_ENVS = 16  # rows of episodes that an offline run is diagnosed on, at least; of a set one of each task
ORDERS = 2  # in which one run reads its dataset: windows, then starts


def open_dataset(config: ExperimentConfig) -> Dataset | None:
    """The dataset that `config.data` names. Raises DataError."""
    return None if config.data is None else Dataset.open(Path(config.data.path).expanduser())


def window_sampler(
    dataset: Dataset, config: ExperimentConfig, task: ResolvedTask, device: torch.device, *, starts: bool = False
) -> WindowSampler:
    """Windows for the model, or with `starts` windows of one transition for the starts of the policy."""
    assert config.data is not None
    training, data = config.training, config.data
    return WindowSampler(
        dataset,
        task.spec,
        horizon=1 if starts else training.horizon,
        batch_size=(training.actor_batch_size or config.task.num_envs) if starts else training.wm_batch_size,
        seed=ORDERS * config.seed + starts,
        balance=data.balance,
        memory_mb=data.memory_mb,
        threads=data.threads,
        prefetch=data.prefetch,
        only=task.only,
        device=str(device),
    )


@contextmanager
def offline_batches(
    dataset: Dataset, windows: WindowSampler, config: ExperimentConfig, task: ResolvedTask, device: torch.device
) -> Iterator[DatasetBatches]:
    """What an offline run learns from: `windows`, its start states, and a buffer to be diagnosed on."""
    with window_sampler(dataset, config, task, device, starts=True) as starts:
        yield DatasetBatches(windows, starts, _diagnosed_episodes(dataset, config, task, device))


def measure_rewards(agent: Agent, dataset: Dataset, config: ExperimentConfig, task: ResolvedTask) -> None:
    """Set the reward statistics from the whole dataset, weighted over tasks as the windows are."""
    assert config.data is not None
    names = [info.plain_name for info in task.running.tasks]
    count, mean, square = dataset.reward_moments(names, balanced=config.data.balance == "tasks")
    moments = agent.reward_normalizer.moments
    moments.count.fill_(count)
    moments.total.fill_(count * mean)
    moments.total_square.fill_(count * square)


def dataset_facts(dataset: Dataset, task: ResolvedTask) -> dict[str, Any]:
    """What checkpoints and reports say of the dataset: its episodes and transitions of the run's tasks."""
    names = {info.plain_name for info in task.running.tasks}
    used = [info for info in dataset.tasks if info.plain_name in names]
    return {
        "path": str(dataset.path),
        "set": dataset.set_name,
        "fingerprint": dataset.fingerprint,
        "episodes": sum(info.episodes for info in used),
        "transitions": sum(info.transitions for info in used),
    }


def _diagnosed_episodes(
    dataset: Dataset, config: ExperimentConfig, task: ResolvedTask, device: torch.device
) -> ReplayBuffer:
    """A replay buffer of some episodes of every task, evenly spaced over the dataset."""
    spec, tasks = task.spec, len(task.running.tasks)
    count = tasks * -(-DIAGNOSED_ENVS // tasks)
    ids = assign_tasks(spec, count, config.seed, task.only)
    buffer = ReplayBuffer(
        config.training.wm_buffer_size, count, spec.obs_dim, spec.action_dim, torch.tensor(ids), device
    )
    return fill_with_episodes(buffer, dataset, [spec.tasks[member].plain_name for member in ids])
