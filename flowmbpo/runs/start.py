"""What a run starts from: its config as stored, its agent with the weights taken over, its dataset; and a dry run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowmbpo.checkpoints.load import Loaded
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.dataset.sampler import WindowSampler, match_tasks
from flowmbpo.data.probe import fill_with_episodes
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.envs.episodes import assign_tasks, require_env_per_task
from flowmbpo.envs.resolve import ResolvedTask, resolve
from flowmbpo.errors import ConfigError
from flowmbpo.models.agent import Agent, build_meta_agent, seeded_agent
from flowmbpo.parity.comparison import reference_parity
from flowmbpo.parity.flops import estimate_cost, parameter_counts, solved_widths
from flowmbpo.spec import EnvSpec
from flowmbpo.stages.initial import Origins, load_initial
from flowmbpo.stages.transfer.report import TransferReport
from flowmbpo.training.compiled import compiler_fault
from flowmbpo.training.learner import Warmstart

log = logging.getLogger("flowmbpo")

DATA, WEIGHTS = "--data DIR", "--from CKPT"
FROZEN = ("encoder", "dynamics", "reward", "termination", "decoder")  # parts of a world model that is kept as it is
DIAGNOSED_ENVS = 16  # rows of episodes that an offline run is diagnosed on, at least; of a set one of each task
WORTH_COMPILING = 4_000  # rounds of updates from which on a first compilation costs less than it saves
ORDERS = 2  # in which one run reads its dataset: windows, then starts


@dataclass(frozen=True)
class Start:
    """A run before its first step: the config as the run stores it, the agent, and what is told of its origins.

    `dataset` is None where nothing of it is read; `report` says what was taken over from the initial checkpoint;
    with `policy_starts` the policy of that acts in the episodes before the first epoch; `loaded` is the checkpoint
    that the run goes on from.
    """

    task: ResolvedTask
    config: ExperimentConfig
    agent: Agent
    origins: Origins
    dataset: Dataset | None = None
    warmstart: Warmstart | None = None
    report: TransferReport | None = None
    policy_starts: bool = False
    loaded: Loaded | None = None


def begin(config: ExperimentConfig, task: ResolvedTask, loaded: Loaded | None) -> Start:
    """Build what the run starts from, or with `loaded` what its checkpoint is then put into. Writes nothing.

    Raises ConfigError, CheckpointError or DataError.
    """
    initial, report, warmstart = None, None, None
    begun = loaded is not None and (loaded.payload["started"] or loaded.payload["pretrained"] > 0)
    if config.initial is not None and not begun:
        initial = load_initial(config.initial)
        config = initial.adopt(config, task.spec)
    dataset = None if config.data is None else Dataset.open(Path(config.data.path).expanduser())
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
    data = None if dataset is None else dataset_facts(dataset, task)
    if loaded is not None:
        origins = Origins.restored(config, loaded.payload)
    elif initial is None or report is None:
        origins = Origins(config, data=data)
    else:
        lineage = list(initial.loaded.payload.get("lineage", []))  # of a foreign file, it is not ours to count
        origins = Origins(config, lineage, initial.record(report), data)
    start = Start(task, config, agent, origins, dataset, warmstart, report, policy_starts, loaded)
    samples = config.model.encoder.normalize_steps
    if dataset is not None and samples > 0 and (report is None or "encoder" in report.parts("reinitialised")):
        generator = torch.Generator().manual_seed(config.seed)
        episodes = diagnosed_episodes(start, torch.device("cpu"))  # of all over the dataset
        agent.world_model.observe(episodes.sample(samples, 1, generator).obs[0])
    return start


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
    """Threads and matrix-product precision of this process; the device, the config's or `device` (see above)."""
    if config.compute.threads is not None:
        torch.set_num_threads(config.compute.threads)
    torch.set_float32_matmul_precision(config.compute.precision)
    return resolve_device(device or config.device)


def asks_for_compilation(config: ExperimentConfig) -> bool:
    """Whether compiled updates are wanted: always, or by a run long enough to gain."""
    training = config.own_training
    updates = training.epochs * training.rounds_per_epoch(config.task.num_envs)
    return config.compute.compile == "update" or (config.compute.compile == "auto" and updates >= WORTH_COMPILING)


def compilation_fault(config: ExperimentConfig) -> str | None:
    """Why the updates that are to be compiled cannot be. Raises ConfigError where they must be."""
    if config.own_training.adaptive_horizon is not None:
        fault: str | None = "training.adaptive_horizon changes the shape of the updates from one to the next"
    elif config.model.dynamics.jacobian_penalty > 0.0:
        fault = "model.dynamics.jacobian_penalty differentiates within the loss, which torch cannot compile whole"
    else:
        fault = compiler_fault()
    if fault is not None and config.compute.compile == "update":
        raise ConfigError(f"compute.compile 'update' is not possible: {fault}. Set it to 'auto' or 'off'")
    return fault


def compiles(config: ExperimentConfig) -> bool:
    """Whether the run's updates are compiled. Raises ConfigError where they must be and cannot."""
    return asks_for_compilation(config) and compilation_fault(config) is None


def still_needed(config: ExperimentConfig) -> dict[str, str]:
    """Options that a run of this config cannot do without and does not have, each with what to say of it."""
    training, needs = config.training, dict[str, str]()
    if config.data is None and training.mode == "offline":
        needs[DATA] = (
            f"training.mode 'offline' of {config.name} learns from a dataset, and none is named: add {DATA} "
            "(see `flowmbpo data collect --help` and `flowmbpo data where`)"
        )
    elif config.data is None and training.pretrain_steps > 0:
        what = f"training.pretrain_steps {training.pretrain_steps} of {config.name}"
        needs[DATA] = f"{what} needs a dataset: add {DATA}, or set it to 0"
    if config.initial is None and training.learn == "policy":
        what = f"training.learn 'policy' of {config.name} keeps the world model as it is"
        needs[WEIGHTS] = f"{what}, and none is given: name a trained one with {WEIGHTS}"
    return needs


def check_num_envs(config: ExperimentConfig, task: ResolvedTask) -> None:
    """Raises ConfigError where a task of the set would have no environment to be stepped in."""
    if config.training.mode == "online" and task.only is None:
        require_env_per_task(task.spec, config.task.num_envs)


def check_config(config: ExperimentConfig, task: ResolvedTask) -> None:
    """Refuse what only a whole experiment shows to be impossible. Raises ConfigError."""
    check_num_envs(config, task)
    compiles(config)
    for message in still_needed(config).values():
        raise ConfigError(message)


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


def window_sampler(start: Start, device: torch.device, *, starts: bool = False) -> WindowSampler:
    """Windows of the dataset for the model, or with `starts` those of one transition for the starts of the policy."""
    config, task = start.config, start.task
    assert start.dataset is not None and config.data is not None
    training, data = config.training, config.data
    return WindowSampler(
        start.dataset,
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


def diagnosed_episodes(start: Start, device: torch.device) -> ReplayBuffer:
    """A replay buffer of some episodes of every task, evenly spaced over the dataset: what an offline run measures."""
    assert start.dataset is not None
    task, spec, tasks = start.task, start.task.spec, len(start.task.running.tasks)
    ids = assign_tasks(spec, tasks * -(-DIAGNOSED_ENVS // tasks), start.config.seed, task.only)
    rows = start.config.training.wm_buffer_size
    buffer = ReplayBuffer(rows, len(ids), spec.obs_dim, spec.action_dim, torch.tensor(ids), device)
    return fill_with_episodes(buffer, start.dataset, [spec.tasks[member].plain_name for member in ids])


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


def dry_run(config: ExperimentConfig) -> dict[str, Any]:
    """What `train --dry-run` reports: resolve, build, count, read what the run starts from, and write nothing.

    Raises ConfigError, CheckpointError or DataError.
    """
    task = resolve(config.task)
    config = pinned(config, task)
    check_num_envs(config, task)
    compiles(config)
    dataset = None if config.data is None else Dataset.open(Path(config.data.path).expanduser())
    if dataset is not None:
        match_tasks(dataset, task.spec, task.only)
    report = None
    if config.initial is not None:
        initial = load_initial(config.initial)
        config = initial.adopt(config, task.spec)
        with torch.random.fork_rng(devices=[]):
            report = initial.take_over(seeded_agent(config, task.spec))
        distils = report.to_distill and initial.options.distill_updates > 0
        config, _ = first_actions(config, report, distils and dataset is None)
    spec, tasks, agent = task.spec, task.running.tasks, build_meta_agent(config, task.spec)
    gaps = reference_parity(config, agent)
    parameters = parameter_counts(agent)
    return {
        "name": config.name,
        "config": config.model_dump(mode="json"),
        "task": {
            "name": task.label,
            "tasks": [info.name for info in tasks],
            "simulator": ", ".join(dict.fromkeys(info.simulator for info in tasks)),
            "obs_dim": spec.obs_dim,
            "action_dim": spec.action_dim,
            "episode_length": max(info.episode_length for info in tasks),
            "discount": min(info.discount for info in tasks),
            "notice": "\n".join(task.notices) or None,
        },
        "device": str(resolve_device(config.device)),
        **total_steps(config, task),
        "needs": list(still_needed(config)),
        "initial": None if report is None else report.lines(),
        "data": None if dataset is None else dataset_facts(dataset, task),
        "parameters": {**parameters, "total": sum(parameters.values())},
        "solved_widths": solved_widths(agent),
        "gap_to_mlp_gaussian_percent": {"model": gaps.model.gap_percent, "actor": gaps.actor.gap_percent},
        "compute": estimate_cost(config, spec).to_dict(),
    }


def total_steps(config: ExperimentConfig, task: ResolvedTask) -> dict[str, int]:
    """Agent and environment steps of the whole run, random episodes included (fewer where episodes end early).

    Offline there are none.
    """
    if config.training.mode == "offline":
        return {"agent_steps": 0, "env_steps": 0}
    longest = max(info.episode_length for info in task.running.tasks)
    training = config.own_training
    each = training.random_episodes * longest + training.epochs * training.horizon
    assigned = assign_tasks(task.spec, config.task.num_envs, config.seed, task.only)
    repeats = [task.spec.tasks[member].action_repeat for member in assigned]
    return {"agent_steps": len(repeats) * each, "env_steps": sum(repeats) * each}
