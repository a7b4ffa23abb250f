"""Objects that a config describes."""

from __future__ import annotations

from pathlib import Path

import torch

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.diagnostics.parameters import build_agent
from flowmbpo.envs.base import VectorEnv
from flowmbpo.envs.make import make_env
from flowmbpo.envs.resolve import pin_backend, task_spec
from flowmbpo.envs.spec import EnvSpec
from flowmbpo.errors import ConfigError
from flowmbpo.models.agent import Agent
from flowmbpo.runs.nonfinite import NonFiniteDump
from flowmbpo.training.fog import FoGTrainer

EVALUATION_COPIES = 32  # copies of the task evaluated side by side, at most


def pinned(config: ExperimentConfig) -> ExperimentConfig:
    """The config with the backend that runs here written out, as it is stored and compared."""
    return config.model_copy(update={"task": pin_backend(config.task)})


def env_spec(config: ExperimentConfig) -> EnvSpec:
    """The config's task or task set, without starting a simulator. Raises ConfigError."""
    return task_spec(config.task)


def env_name(config: ExperimentConfig) -> str:
    """The task (or set) that really runs, as paths and reports name it."""
    return task_spec(config.task).label


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


def seeded_agent(config: ExperimentConfig, spec: EnvSpec) -> Agent:
    """The agent of a new run: initial weights depend on the seed alone."""
    torch.manual_seed(config.seed)
    return build_agent(config, spec)


def make_trainer(config: ExperimentConfig, env: VectorEnv, device: torch.device, run_dir: Path) -> FoGTrainer:
    """The trainer of a new run; nothing is written before an update is not finite. Raises ConfigError."""
    agent = seeded_agent(config, env.spec)
    dump = NonFiniteDump(run_dir / "nonfinite")
    return FoGTrainer(agent, env, config.training, seed=config.seed, device=device, dump=dump)


def training_env(config: ExperimentConfig, device: torch.device) -> VectorEnv:
    """The environment that fills the replay buffer."""
    return make_env(config.task, seed=config.seed, device=str(device))


def evaluation_env(config: ExperimentConfig, episodes: int, device: torch.device) -> VectorEnv:
    """A separate environment to evaluate in; the training one keeps its episodes.

    Of a set, every task gets equally many copies, so that episodes are shared out evenly. Raises
    ConfigError where the episodes do not suffice for all tasks, or do not come out even.
    """
    tasks = len(env_spec(config).tasks)
    if episodes % tasks:
        raise ConfigError(
            f"evaluation.episodes: {episodes} episodes cannot be shared evenly over the {tasks} tasks of "
            f"'{config.task.set}'; use a multiple of {tasks}"
        )
    rounds = max(min(episodes, EVALUATION_COPIES) // tasks, 1)
    return make_env(config.task, num_envs=tasks * rounds, seed=config.seed, device=str(device))


def evaluation_seed(seed: int, epoch: int) -> int:
    """A seed that no training environment uses (those use the run's seed itself), new for each epoch."""
    return 2**40 + (seed << 24) + epoch
