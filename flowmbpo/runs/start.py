"""What a run starts from: its config as it is stored, its agent with the weights taken over, its dataset."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowmbpo.checkpoints.load import Loaded
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.dataset.sampler import WindowSampler
from flowmbpo.data.probe import fill_with_episodes
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.envs.episodes import assign_tasks, require_env_per_task
from flowmbpo.envs.resolve import ResolvedTask
from flowmbpo.errors import ConfigError
from flowmbpo.models.agent import Agent, seeded_agent
from flowmbpo.spec import EnvSpec
from flowmbpo.stages.initial import Origins, load_initial
from flowmbpo.stages.transfer.report import TransferReport
from flowmbpo.training.batches import DatasetBatches
from flowmbpo.training.learner import Warmstart

log = logging.getLogger("flowmbpo")

DATA, WEIGHTS = "--data DIR", "--from CKPT"
FROZEN = ("encoder", "dynamics", "reward", "termination")  # parts of a world model that is kept as it is


@dataclass(frozen=True)
class Start:
    """A run before its first step: the config as the run stores it, the agent, and what is told of its origins.

    `dataset` is None where nothing of it is read; `report` says what was taken over from the initial checkpoint;
    with `policy_starts` the policy of that acts in the episodes before the first epoch.
    """

    config: ExperimentConfig
    agent: Agent
    origins: Origins
    dataset: Dataset | None = None
    warmstart: Warmstart | None = None
    report: TransferReport | None = None
    policy_starts: bool = False


def begin(config: ExperimentConfig, task: ResolvedTask, loaded: Loaded | None) -> Start:
    """Build what the run starts from, or with `loaded` what its checkpoint is then put into. Writes nothing.

    Raises ConfigError, CheckpointError or DataError.
    """
    initial, report, warmstart = None, None, None
    begun = loaded is not None and (loaded.payload["started"] or loaded.payload["pretrained"] > 0)
    if config.initial is not None and not begun:
        initial = load_initial(config.initial)
        config = initial.adopt(config, task.spec)
    dataset = open_dataset(config)
    agent = seeded_agent(config, task.spec)
    if initial is not None:
        report = initial.take_over(agent)
        warmstart = initial.warmstart(agent, config, report)
        _check_frozen_model(config, task, report, warmstart)
    reads_data = config.training.mode == "offline" or config.training.pretrain_steps > 0 or warmstart is not None
    if dataset is not None and not reads_data:
        if initial is not None or config.initial is None:  # else it may have been read before this resume
            log.warning("%s is not read: training.pretrain_steps is 0, and nothing is to be distilled", dataset.path)
        dataset = None
    needs_windows, policy_starts = warmstart is not None and dataset is None, False
    if report is not None:
        config, policy_starts = first_actions(config, report, needs_windows)
    if needs_windows and config.own_training.random_episodes == 0:
        raise ConfigError(
            "the checkpoint's dynamics are distilled on real windows, and there are none before the first epoch: "
            "set training.random_episodes (or initial.random_episodes, where that is stated) to at least 1, "
            "or name a dataset with --data DIR"
        )
    if dataset is not None and (report is None or "reward_normalizer" in report.parts("reinitialised")):
        measure_rewards(agent, dataset, config, task)
    if loaded is not None:
        origins = Origins.restored(config, loaded.payload)
    else:
        origins = Origins(
            config,
            ancestors=[] if initial is None else initial.lineage,
            initial=None if initial is None or report is None else initial.record(report),
            data=None if dataset is None else dataset_facts(dataset, task),
        )
    return Start(config, agent, origins, dataset, warmstart, report, policy_starts)


def first_actions(
    config: ExperimentConfig, report: TransferReport, needs_windows: bool
) -> tuple[ExperimentConfig, bool]:
    """The config with what becomes of its random episodes, and whether the policy that was taken over acts in them.

    A trained policy needs none, so there are none, unless the config states how many. Where the dynamics are to be
    distilled on real windows before the first epoch (`needs_windows`) they stay, and the policy acts in them.
    """
    stated = config.initial is None or config.initial.random_episodes is not None
    if stated or config.training.mode == "offline" or "actor" in report.parts("reinitialised"):
        return config, False
    if needs_windows:
        return config, True
    assert config.initial is not None
    initial = config.initial.model_copy(update={"random_episodes": 0})
    return config.model_copy(update={"initial": initial}), False


def initial_agent(config: ExperimentConfig, spec: EnvSpec) -> Agent:
    """The agent as the run began with it, in evaluation mode. Leaves the global generator as it is.

    Raises CheckpointError where it began with a checkpoint's weights and that file is gone or another one now.
    """
    with torch.random.fork_rng(devices=[]):
        agent = seeded_agent(config, spec).eval()
    if config.initial is not None:
        load_initial(config.initial).take_over(agent)
    return agent


def pinned(config: ExperimentConfig, task: ResolvedTask) -> ExperimentConfig:
    """The config with the backend that runs here and absolute paths written out, as it is stored and compared."""
    data, initial = config.data, config.initial
    if data is not None:
        data = data.model_copy(update={"path": str(Path(data.path).expanduser().absolute())})
    if initial is not None:
        initial = initial.model_copy(update={"checkpoint": str(Path(initial.checkpoint).expanduser().absolute())})
    return config.model_copy(update={"task": task.config, "data": data, "initial": initial})


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one. Raises ConfigError for CUDA without a GPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device 'cuda': torch sees no GPU on this machine; use 'cpu' or 'auto' (see `flowmbpo doctor`)"
        )
    return torch.device(name)


def set_up_compute(config: ExperimentConfig, device: str | None = None) -> torch.device:
    """Threads and matrix-product precision of this process; the device, the config's or `device`.

    Raises ConfigError as `resolve_device` does.
    """
    chosen = resolve_device(config.device if device is None else device)
    if config.compute.threads is not None:
        torch.set_num_threads(config.compute.threads)
    torch.set_float32_matmul_precision(config.compute.precision)
    return chosen


def still_needed(config: ExperimentConfig) -> list[str]:
    """Options that a run of this config cannot do without and does not have."""
    training = config.training
    data = config.data is None and (training.mode == "offline" or training.pretrain_steps > 0)
    weights = config.initial is None and training.learn == "policy"
    return [DATA] * data + [WEIGHTS] * weights


def check_num_envs(config: ExperimentConfig, task: ResolvedTask) -> None:
    """Raises ConfigError where a task of the set would have no environment to be stepped in."""
    if config.training.mode == "online" and task.only is None:
        require_env_per_task(task.spec, config.task.num_envs)


def check_config(config: ExperimentConfig, task: ResolvedTask) -> None:
    """Refuse what only a whole experiment shows to be impossible. Raises ConfigError."""
    check_num_envs(config, task)
    training, needed = config.training, still_needed(config)
    if DATA in needed and training.mode == "offline":
        raise ConfigError(
            f"training.mode 'offline' of {config.name} learns from a dataset, and none is named: add {DATA} "
            "(see `flowmbpo data collect --help` and `flowmbpo data where`)"
        )
    if DATA in needed:
        raise ConfigError(
            f"training.pretrain_steps {training.pretrain_steps} of {config.name} needs a dataset: add {DATA}, "
            "or set it to 0"
        )
    if WEIGHTS in needed:
        raise ConfigError(
            f"training.learn 'policy' of {config.name} keeps the world model as it is, and none is given: "
            f"name a trained one with {WEIGHTS}"
        )


def _check_frozen_model(
    config: ExperimentConfig, task: ResolvedTask, report: TransferReport, warmstart: Warmstart | None
) -> None:
    """Raises ConfigError where a world model would be kept as it is that nothing has trained."""
    if config.training.learn != "policy":
        return
    running = {info.plain_name for info in task.running.tasks}
    unknown = [start for start in report.tasks if start.how != "known" and start.task in running]
    if unknown:
        names = ", ".join(start.task for start in unknown)
        raise ConfigError(
            "training.learn 'policy' keeps the world model as it is, and the checkpoint's was never trained on "
            f"{names}: a policy would learn the rewards of {unknown[0].source}. Name a task that it knows, or train "
            "the model too (flowmbpo specialize)"
        )
    new = [part for part in report.parts("reinitialised") if part in FROZEN]
    if warmstart is not None:
        new = [part for part in new if part != "dynamics"]
    if new:
        details = "; ".join(f"{row.part}: {row.detail}" for row in report.rows if row.part in new)
        raise ConfigError(
            f"training.learn 'policy' keeps the world model as it is, and these parts of the checkpoint's do not fit: "
            f"{details}. Take a preset with the checkpoint's model, set initial.distill_updates above 0 for dynamics "
            "of another kind, or train the model too (training.learn all)"
        )


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
