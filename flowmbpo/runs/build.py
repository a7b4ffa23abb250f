"""Objects that a config describes."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.make import make_env
from flowmbpo.envs.resolve import pin_backend, run_label, running_tasks, task_spec
from flowmbpo.errors import ConfigError
from flowmbpo.models.agent import Agent, seeded_agent
from flowmbpo.spec import EnvSpec
from flowmbpo.stages.initial import load_initial

EVALUATION_COPIES = 32  # copies of the task evaluated side by side, at most (a set: at least one of each task)
EVALUATION_SEED_BASE = 2**62 + 2**61
"""Periodic evaluations start their episodes above this. A SeedSequence cuts numbers into words of 32 bits and pads with
zeros, so the upper word reads as a training run's copy number: it is 3 * 2^29 or more here, and no run has that many
copies. `eval` has 2^30 there (`SEED_BASE` in runs/evaluate.py), which no seed below 2^30 reaches from here."""

log = logging.getLogger("flowmbpo")


def pinned(config: ExperimentConfig) -> ExperimentConfig:
    """The config with the backend that runs here and absolute paths written out, as it is stored and compared."""
    data, initial = config.data, config.initial
    if data is not None:
        data = data.model_copy(update={"path": _absolute(data.path)})
    if initial is not None:
        initial = initial.model_copy(update={"checkpoint": _absolute(initial.checkpoint)})
    return config.model_copy(update={"task": pin_backend(config.task), "data": data, "initial": initial})


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def env_spec(config: ExperimentConfig) -> EnvSpec:
    """The config's task or task set, without starting a simulator. Raises ConfigError."""
    return task_spec(config.task)


def env_name(config: ExperimentConfig) -> str:
    """The task (or set) that really runs, as paths and reports name it."""
    return run_label(config.task)


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one. Raises ConfigError for CUDA without a GPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device 'cuda': torch sees no GPU on this machine; use 'cpu' or 'auto' (see `flowmbpo doctor`)"
        )
    return torch.device(name)


def set_up_compute(config: ExperimentConfig) -> None:
    """Threads and matrix-product precision of this process."""
    if config.compute.threads is not None:
        torch.set_num_threads(config.compute.threads)
    torch.set_float32_matmul_precision(config.compute.precision)


def initial_agent(config: ExperimentConfig) -> Agent:
    """The agent as the run began with it, in evaluation mode. Leaves the global generator as it is.

    Raises CheckpointError where it began with a checkpoint's weights and that file is gone or another one now.
    """
    with torch.random.fork_rng(devices=[]):
        agent = seeded_agent(config, env_spec(config)).eval()
    if config.initial is not None:
        load_initial(config.initial).take_over(agent)
    return agent


def training_env(config: ExperimentConfig, device: torch.device) -> VectorEnv:
    """The environment that fills the replay buffer."""
    return make_env(config.task, seed=config.seed, device=str(device))


def evaluation_episodes(config: ExperimentConfig, episodes: int) -> int:
    """`episodes`, rounded up so that every task of a set gets equally many; says so where it rounds."""
    tasks = len(running_tasks(config.task).tasks)
    even = _episodes_per_task(episodes, tasks) * tasks
    if even != episodes:
        log.info(
            "evaluation: %d episodes do not come out even over the %d tasks of '%s'; it takes %d, %d of each task",
            *(episodes, tasks, env_name(config), even, even // tasks),
        )
    return even


def evaluation_env(
    config: ExperimentConfig, episodes: int, device: torch.device, *, only: int | None = None
) -> VectorEnv:
    """A separate environment to evaluate in; the training one keeps its episodes.

    Of a set, every task gets equally many copies and every copy equally many episodes: those that
    `evaluation_episodes` gives. `only` is the id of the one task of a set to evaluate.
    """
    tasks = 1 if only is not None else len(running_tasks(config.task).tasks)
    copies = min(episodes, EVALUATION_COPIES) if tasks == 1 else tasks * _rounds(episodes, tasks)
    return make_env(config.task, num_envs=copies, seed=config.seed, device=str(device), only=only)


def evaluation_seed(seed: int, epoch: int) -> int:
    """A seed that no training environment uses (those use the run's seed itself), new for each epoch."""
    return EVALUATION_SEED_BASE + (seed << 24) + epoch


def _episodes_per_task(episodes: int, tasks: int) -> int:
    return -(-episodes // tasks)


def _rounds(episodes: int, tasks: int) -> int:
    """Copies of each task: as many as fit and share its episodes out evenly."""
    each = _episodes_per_task(episodes, tasks)
    most = max(EVALUATION_COPIES // tasks, 1)
    return max(rounds for rounds in range(1, most + 1) if each % rounds == 0)
