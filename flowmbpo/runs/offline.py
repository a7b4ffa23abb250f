"""A run's dataset: opened, checked against the run's tasks, and handed to its trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.dataset.sampler import WindowSampler
from flowmbpo.data.probe import fill_with_episodes
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.envs.assignment import lane_tasks
from flowmbpo.envs.resolve import only_id, running_tasks
from flowmbpo.models.agent import Agent
from flowmbpo.runs.build import env_spec

DIAGNOSED_LANES = 16  # lanes of the buffer that an offline run is diagnosed on, at least; of a set one of each task
SEEDS_PER_RUN = 2  # orders in which one run reads its dataset


def open_dataset(config: ExperimentConfig) -> Dataset | None:
    """The dataset that `config.data` names. Raises DataError."""
    return None if config.data is None else Dataset.open(Path(config.data.path).expanduser())


def sampler(
    dataset: Dataset, config: ExperimentConfig, horizon: int, which: int, device: torch.device
) -> WindowSampler:
    """Windows for the model (`horizon` transitions), or for the starts of the policy (one transition)."""
    assert config.data is not None
    training, data = config.training, config.data
    starts = training.actor_batch_size or config.task.num_envs
    return WindowSampler(
        dataset,
        env_spec(config),
        horizon=horizon,
        batch_size=starts if which else training.wm_batch_size,
        seed=SEEDS_PER_RUN * config.seed + which,
        balance=data.balance,
        memory_mb=data.memory_mb,
        threads=data.threads,
        prefetch=data.prefetch,
        only=only_id(config.task),
        device=str(device),
    )


def measure_rewards(agent: Agent, dataset: Dataset, config: ExperimentConfig) -> None:
    """Set the reward statistics from the whole dataset, weighted over tasks as the windows are."""
    assert config.data is not None
    names = [task.plain_name for task in running_tasks(config.task).tasks]
    count, mean, square = dataset.reward_moments(names, balanced=config.data.balance == "tasks")
    moments = agent.reward_normalizer.moments
    moments.count.fill_(count)
    moments.total.fill_(count * mean)
    moments.total_square.fill_(count * square)


def dataset_facts(dataset: Dataset, config: ExperimentConfig) -> dict[str, Any]:
    """What checkpoints and reports say of the dataset: its episodes and transitions of the run's tasks."""
    names = {task.plain_name for task in running_tasks(config.task).tasks}
    used = [task for task in dataset.tasks if task.plain_name in names]
    return {
        "path": str(dataset.path),
        "set": dataset.set_name,
        "fingerprint": dataset.fingerprint,
        "episodes": sum(task.episodes for task in used),
        "transitions": sum(task.transitions for task in used),
    }


def diagnosed_episodes(dataset: Dataset, config: ExperimentConfig, device: torch.device) -> ReplayBuffer:
    """A replay buffer of some episodes of every task, evenly spaced over the dataset."""
    spec, only = env_spec(config), only_id(config.task)
    tasks = 1 if only is not None else len(spec.tasks)
    lanes = tasks * -(-DIAGNOSED_LANES // tasks)
    ids = lane_tasks(spec, lanes, config.seed, only)
    buffer = ReplayBuffer(
        config.training.wm_buffer_size, lanes, spec.obs_dim, spec.action_dim, torch.tensor(ids), device
    )
    return fill_with_episodes(buffer, dataset, [spec.tasks[task].plain_name for task in ids])
