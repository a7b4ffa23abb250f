"""Real-environment evaluation of a checkpoint: table, files, video, learning curve."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowmbpo.checkpoints.load import Loaded, load, resolve
from flowmbpo.checkpoints.payload import architecture_mismatch
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.planner import MPPIConfig
from flowmbpo.envs.make import open_env
from flowmbpo.envs.resolve import backend_notices, member_id, only_id
from flowmbpo.envs.simulators import simulators
from flowmbpo.errors import CheckpointError, ConfigError, RunDirectoryError
from flowmbpo.evaluation.record import record_episodes
from flowmbpo.evaluation.results import write_results
from flowmbpo.evaluation.returns import Evaluation
from flowmbpo.evaluation.returns import evaluate as evaluate_policy
from flowmbpo.models.agent import Agent, build_agent
from flowmbpo.presets.load import experiment_from_dict
from flowmbpo.runs.acting import Acting, check_trained, make_acting, planning_config
from flowmbpo.runs.build import env_spec, evaluation_env, evaluation_episodes, resolve_device, set_up_compute
from flowmbpo.spec import EnvSpec

log = logging.getLogger("flowmbpo")

SEED_BASE = 2**62
"""Evaluation seed n starts its episodes from this plus n, which no training or periodic evaluation uses. A
SeedSequence cuts numbers into words of 32 bits, so the upper one of (2^39 + s, copy, episode) would read as training's
copy 128 of seed s; none has the number 2^30. Periodic evaluation has 3 * 2^29 and more there."""
LARGEST_SEED = 1_000_000_000  # as for training: larger ones would carry into the upper word
FRAMES_PER_SECOND = 30.0


@dataclass(frozen=True)
class EvalOutcome:
    """What `eval --json` prints."""

    checkpoint: str
    checkpoint_sha256: str
    verified: bool
    epoch: int
    env_steps: int
    task: str
    simulator: str
    seed: int
    planner: dict[str, Any]
    evaluation: Evaluation
    results: str
    video: str | None
    plot: str | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        figures = self.evaluation.to_dict()
        return {
            "checkpoint": self.checkpoint,
            "checkpoint_sha256": self.checkpoint_sha256,
            "verified": self.verified,
            "epoch": self.epoch,
            "env_steps": self.env_steps,
            "task": self.task,
            "simulator": self.simulator,
            "seed": self.seed,
            "planner": self.planner,
            **{key: figures[key] for key in ("episodes", "return_mean", "return_std", "success", "length_mean")},
            "faults": figures["faults"],
            "per_task": figures["per_task"],
            "returns": figures["returns"],
            "lengths": figures["lengths"],
            "tasks": figures["tasks"],
            "results": self.results,
            "video": self.video,
            "plot": self.plot,
        }


def evaluate(
    checkpoint: Path,
    *,
    episodes: int | None = None,
    seed: int | None = None,
    task: str | None = None,
    device: str = "auto",
    video: Path | None = None,
    plot: Path | None = None,
    planner: MPPIConfig | None = None,
) -> EvalOutcome:
    """Roll the checkpoint's policy (or `planner` in its world model) out in the real environment.

    The figures go to `results/`, a planner's into a folder of their own. `task` is one task of the set that
    the checkpoint was trained on, or for a single task's checkpoint another task of the same widths; by
    default what the run itself ran. Raises CheckpointError, ConfigError, EnvironmentUnavailableError.
    """
    path = resolve(checkpoint)
    metrics = None if plot is None else _metrics_beside(path)  # before minutes of episodes are run for it
    target = resolve_device(device)
    loaded = load(path, target)
    check_trained(loaded, "policy" if planner is None else "mppi")
    config, only = _chosen(experiment_from_dict(loaded.payload["config"], str(path)), task)
    evaluated = _evaluated(config, only)
    tasks = len(evaluated.tasks)
    if video is not None and tasks > 1:
        raise ConfigError(f"--video: films one task, and {evaluated.label} has {tasks}; name one with --task")
    set_up_compute(config)
    agent = load_agent(loaded, config if planner is None else planning_config(config, loaded.payload)).to(target)
    count = config.evaluation.episodes if episodes is None else episodes
    if only is None:
        count = evaluation_episodes(config, count)
    named_seed = config.seed if seed is None else seed
    if not 0 <= named_seed <= LARGEST_SEED:
        raise ConfigError(f"--seed: {named_seed} is not between 0 and {LARGEST_SEED}")
    used_seed = SEED_BASE + named_seed
    for notice in backend_notices(config.task):
        log.warning("%s", notice)

    acting = make_acting(agent, loaded, config, target, used_seed, planner)
    env = evaluation_env(config, count, target, only=only)
    try:
        figures = evaluate_policy(acting.act, env, count, used_seed, on_start=acting.on_start)
    finally:
        env.close()
    origin: dict[str, Any] = {
        "checkpoint": str(path),
        "checkpoint_sha256": loaded.sha256,
        "epoch": int(loaded.payload["epoch"]),
        "env_steps": int(loaded.payload["env_steps"]),
        "task": evaluated.label,
        "simulator": simulators(evaluated),
        "seed": named_seed,
        "planner": acting.record(),
    }
    folder = Path("results") / config.phase / evaluated.label / config.name / f"seed{config.seed}"
    if planner is not None:
        folder /= origin["planner"]["kind"]
    files = write_results(folder, figures, origin | {"config": config.name})
    if video is not None:
        _film(make_acting(agent, loaded, config, target, used_seed, planner), config, used_seed, video, only)
    if plot is not None and metrics is not None:
        from flowmbpo.tracking.plots import plot_learning_curve  # matplotlib: seconds that training need not wait

        plot_learning_curve(metrics, plot)
    return EvalOutcome(
        **origin,
        verified=loaded.verified,
        evaluation=figures,
        results=str(files.json),
        video=None if video is None else str(video),
        plot=None if plot is None else str(plot),
    )


def load_agent(loaded: Loaded, config: ExperimentConfig) -> Agent:
    """The checkpoint's agent, built from its own config. Raises CheckpointError on another architecture."""
    with torch.random.fork_rng(devices=[]):
        agent = build_agent(config, env_spec(config))
    mismatch = architecture_mismatch(agent.state_dict(), loaded.payload["agent"])
    if mismatch is not None:
        raise CheckpointError(f"{loaded.path}: {mismatch}")
    agent.load_state_dict(loaded.payload["agent"])
    return agent.eval()


def _chosen(config: ExperimentConfig, task: str | None) -> tuple[ExperimentConfig, int | None]:
    """What to evaluate: `task`, or what the run itself ran; and its id where that is one member of a set."""
    return (config, only_id(config.task)) if task is None else config_for_task(config, task)


def config_for_task(config: ExperimentConfig, task: str) -> tuple[ExperimentConfig, int | None]:
    """What evaluates `task`: the config as it is and the task's id in its set, or a config of that task alone."""
    own = env_spec(config)
    if config.task.set is not None:
        member = member_id(own, task)
        if member is not None:
            return config, member
        if len(own.tasks) > 1:
            raise ConfigError(
                f"--task {task}: is not one of the tasks of {own.label}, which the checkpoint was trained on: "
                f"{', '.join(info.plain_name for info in own.tasks)}"
            )
    elif task == config.task.name:
        return config, None  # with the run's own backend
    chosen = {"name": task, "set": None, "tasks": None, "only": None, "backend": "auto"}
    changed = config.model_copy(update={"task": config.task.model_copy(update=chosen)})
    other = env_spec(changed)
    if (own.obs_dim, own.action_dim) != (other.obs_dim, other.action_dim):
        raise ConfigError(
            f"--task {task}: has {other.obs_dim} observations and {other.action_dim} actions, but the checkpoint was "
            f"trained on {own.label} with {own.obs_dim} and {own.action_dim}; evaluate it on a task of its size"
        )
    return changed, None


def _evaluated(config: ExperimentConfig, only: int | None) -> EnvSpec:
    """What the episodes are of: the config's task or set, or one task of it."""
    spec = env_spec(config)
    return spec if only is None else EnvSpec((spec.tasks[only],))


def _film(acting: Acting, config: ExperimentConfig, seed: int, video: Path, only: int | None) -> None:
    from flowmbpo.tracking.video import write_video

    with open_env(config.task, copies=1, workers=0, only=only) as env:
        write_video(record_episodes(acting.act, env, 1, seed), video, FRAMES_PER_SECOND)


def _metrics_beside(checkpoint: Path) -> Path:
    metrics = checkpoint.parent.parent / "metrics.jsonl"
    if not metrics.is_file():
        raise RunDirectoryError(
            f"--plot: {checkpoint} lies in no run directory, so there is no metrics.jsonl to draw; "
            "name a run directory, or a checkpoint inside one"
        )
    return metrics
