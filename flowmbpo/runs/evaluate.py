"""Real-environment evaluation of a checkpoint: table, files, video, learning curve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowmbpo.checkpoints.loader import Loaded, load, resolve
from flowmbpo.checkpoints.payload import architecture_mismatch
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.load import experiment_from_dict
from flowmbpo.diagnostics.parameters import build_agent
from flowmbpo.envs.inspection.opening import open_env
from flowmbpo.envs.simulators import simulators
from flowmbpo.errors import CheckpointError, ConfigError, RunDirectoryError
from flowmbpo.evaluation.record import record_episodes
from flowmbpo.evaluation.results import write_results
from flowmbpo.evaluation.returns import Evaluation, Policy
from flowmbpo.evaluation.returns import evaluate as evaluate_policy
from flowmbpo.models.agent import Agent
from flowmbpo.runs.build import env_name, env_spec, evaluation_env, resolve_device, set_up_compute

SEED_BASE = 2**62
"""Evaluation seed n starts its episodes from this plus n, which no training or periodic evaluation uses. A
SeedSequence cuts numbers into words of 32 bits, so the upper one of (2^39 + s, copy, episode) would read as training's
copy 128 of seed s; none has the number 2^30."""
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
) -> EvalOutcome:
    """Roll the checkpoint's policy out in the real environment and write the figures to `results/`.

    Raises CheckpointError, ConfigError, EnvironmentUnavailableError.
    """
    path = resolve(checkpoint)
    metrics = None if plot is None else _metrics_beside(path)  # before minutes of episodes are run for it
    target = resolve_device(device)
    loaded = load(path, target)
    config = experiment_from_dict(loaded.payload["config"], str(path))
    if task is not None:
        config = _for_task(config, task)
    tasks = len(env_spec(config).tasks)
    if video is not None and tasks > 1:
        raise ConfigError(f"--video: films one task, and {env_name(config)} has {tasks}; leave it out")
    set_up_compute(config)
    agent = load_agent(loaded, config).to(target)
    count = config.evaluation.episodes if episodes is None else episodes
    named_seed = config.seed if seed is None else seed
    used_seed = SEED_BASE + named_seed

    env = evaluation_env(config, count, target)
    try:
        figures = evaluate_policy(_policy(agent, config, target, used_seed), env, count, used_seed)
    finally:
        env.close()
    meta = {
        "checkpoint": str(path),
        "checkpoint_sha256": loaded.sha256,
        "seed": named_seed,
        "epoch": int(loaded.payload["epoch"]),
        "env_steps": int(loaded.payload["env_steps"]),
        "config": config.name,
        "task": env_name(config),
        "simulator": simulators(env_spec(config)),
    }
    folder = Path("results") / config.phase / env_name(config) / config.name / f"seed{config.seed}"
    files = write_results(folder, figures, meta)
    if video is not None:
        _film(_policy(agent, config, target, used_seed), config, used_seed, video)
    if plot is not None and metrics is not None:
        from flowmbpo.tracking.plots import plot_learning_curve  # matplotlib: seconds that training need not wait

        plot_learning_curve(metrics, plot)
    return EvalOutcome(
        checkpoint=str(path),
        checkpoint_sha256=loaded.sha256,
        verified=loaded.verified,
        epoch=int(loaded.payload["epoch"]),
        env_steps=int(loaded.payload["env_steps"]),
        task=env_name(config),
        simulator=simulators(env_spec(config)),
        seed=named_seed,
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


def _policy(agent: Agent, config: ExperimentConfig, device: torch.device, seed: int) -> Policy:
    """The agent's actions: deterministic, or seeded samples where the config evaluates those."""
    generator = None if config.evaluation.deterministic else torch.Generator(device).manual_seed(seed)
    return lambda obs, task: agent.act(obs.to(device), task.to(device), generator)


def _for_task(config: ExperimentConfig, task: str) -> ExperimentConfig:
    own = env_spec(config)
    changed = config.model_copy(
        update={"task": config.task.model_copy(update={"name": task, "set": None, "tasks": None, "backend": "auto"})}
    )
    other = env_spec(changed)
    if (own.obs_dim, own.action_dim) != (other.obs_dim, other.action_dim):
        raise ConfigError(
            f"--task {task}: has {other.obs_dim} observations and {other.action_dim} actions, but the checkpoint was "
            f"trained on {config.task.name} with {own.obs_dim} and {own.action_dim}; evaluate it on a task of its size"
        )
    return changed


def _film(policy: Policy, config: ExperimentConfig, seed: int, video: Path) -> None:
    from flowmbpo.tracking.video import write_video

    with open_env(config.task, copies=1, workers=0) as env:
        write_video(record_episodes(policy, env, 1, seed), video, FRAMES_PER_SECOND)


def _metrics_beside(checkpoint: Path) -> Path:
    metrics = checkpoint.parent.parent / "metrics.jsonl"
    if not metrics.is_file():
        raise RunDirectoryError(
            f"--plot: {checkpoint} lies in no run directory, so there is no metrics.jsonl to draw; "
            "name a run directory, or a checkpoint inside one"
        )
    return metrics
