"""Real-environment evaluation of a checkpoint: table, files, video, learning curve."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from flowmbpo.checkpoints.load import Loaded, load
from flowmbpo.checkpoints.payload import architecture_mismatch
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.planner import MPPIConfig
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.make import make_env, open_env
from flowmbpo.envs.resolve import ResolvedTask, resolve
from flowmbpo.envs.simulators import simulators
from flowmbpo.errors import CheckpointError, ConfigError, RunDirectoryError
from flowmbpo.evaluation.episodes import film_episodes
from flowmbpo.evaluation.results import RESULTS_SCHEMA, Evaluation, evaluate, write_results
from flowmbpo.models.agent import Agent, build_agent
from flowmbpo.presets.load import experiment_from_dict
from flowmbpo.runs.acting import Acting, check_trained, make_acting, planning_config
from flowmbpo.runs.start import resolve_device, set_up_compute
from flowmbpo.spec import EnvSpec

log = logging.getLogger("flowmbpo")

SEED_BASE = 2**62
"""Evaluation seed n starts its episodes from this plus n, which no training or periodic evaluation uses. A
SeedSequence cuts numbers into words of 32 bits, so the upper one of (2^39 + s, env, episode) would read as training's
environment 128 of seed s; none has the number 2^30. Periodic evaluation has 3 * 2^29 and more there."""
EVALUATION_ENVS = 32  # environments evaluated side by side, at most (a set: at least one of each task)
EVALUATION_SEED_BASE = 2**62 + 2**61
"""Periodic evaluations start their episodes above this. A SeedSequence cuts numbers into words of 32 bits and pads with
zeros, so the upper word reads as a training run's environment index: it is 3 * 2^29 or more here, and no run has
that many. `eval` has 2^30 there (`SEED_BASE`), which no seed below 2^30 reaches from here."""
LARGEST_SEED = 1_000_000_000  # as for training: larger ones would carry into the upper word
FRAMES_PER_SECOND = 30.0
FIGURES = (
    *("episodes", "return_mean", "return_std", "success", "length_mean", "faults"),
    *("per_task", "returns", "lengths", "tasks"),
)


@dataclass(frozen=True)
class EvalOutcome:
    """What `eval --json` prints."""

    checkpoint: str
    checkpoint_sha256: str
    verified: bool
    epoch: int
    agent_steps: int
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
        """The JSON document: the evaluation's figures among the other fields."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "evaluation"}
        figures = self.evaluation.to_dict()
        return {"schema_version": RESULTS_SCHEMA} | own | {key: figures[key] for key in FIGURES}


def evaluate_checkpoint(
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
    target = resolve_device(device)
    loaded = load(checkpoint, target)
    metrics = None if plot is None else _metrics_beside(loaded.path)  # before minutes of episodes are run for it
    check_trained(loaded, "policy" if planner is None else "mppi")
    config = experiment_from_dict(loaded.payload["config"], str(loaded.path))
    evaluated = evaluated_task(resolve(config.task), task)
    tasks = len(evaluated.running.tasks)
    if video is not None and tasks > 1:
        raise ConfigError(f"--video: films one task, and {evaluated.label} has {tasks}; name one with --task")
    set_up_compute(config, device)
    built = config if planner is None else planning_config(config, loaded.payload)
    agent = load_agent(loaded, built, evaluated.spec).to(target)
    count = evaluation_episodes(evaluated, config.evaluation.episodes if episodes is None else episodes)
    named_seed = config.seed if seed is None else seed
    if not 0 <= named_seed <= LARGEST_SEED:
        raise ConfigError(f"--seed: {named_seed} is not between 0 and {LARGEST_SEED}")
    used_seed = SEED_BASE + named_seed
    for notice in evaluated.notices:
        log.warning("%s", notice)

    acting = make_acting(agent, loaded, config, target, used_seed, planner)
    env = evaluation_env(evaluated, count, config.seed, target)
    try:
        figures = evaluate(acting.act, env, count, used_seed, on_start=acting.on_start)
    finally:
        env.close()
    origin: dict[str, Any] = {
        "checkpoint": str(loaded.path),
        "checkpoint_sha256": loaded.sha256,
        "epoch": int(loaded.payload["epoch"]),
        "agent_steps": int(loaded.payload["agent_steps"]),
        "env_steps": int(loaded.payload["env_steps"]),
        "task": evaluated.label,
        "simulator": simulators(evaluated.running),
        "seed": named_seed,
        "planner": acting.record(),
    }
    folder = Path("results") / config.phase / evaluated.label / config.name / f"seed{config.seed}"
    if planner is not None:
        folder /= origin["planner"]["kind"]
    results = write_results(folder, figures, origin | {"config": config.name})
    if video is not None:
        _film(make_acting(agent, loaded, config, target, used_seed, planner), evaluated, used_seed, video)
    if plot is not None and metrics is not None:
        from flowmbpo.tracking.plots import plot_learning_curve  # matplotlib: seconds that training need not wait

        plot_learning_curve(metrics, plot)
    return EvalOutcome(
        **origin,
        verified=loaded.verified,
        evaluation=figures,
        results=str(results),
        video=None if video is None else str(video),
        plot=None if plot is None else str(plot),
    )


def load_agent(loaded: Loaded, config: ExperimentConfig, spec: EnvSpec) -> Agent:
    """The checkpoint's agent, built from its own config. Raises CheckpointError on another architecture."""
    with torch.random.fork_rng(devices=[]):
        agent = build_agent(config, spec)
    mismatch = architecture_mismatch(agent.state_dict(), loaded.payload["agent"])
    if mismatch is not None:
        raise CheckpointError(f"{loaded.path}: {mismatch}")
    agent.load_state_dict(loaded.payload["agent"])
    return agent.eval()


def evaluated_task(own: ResolvedTask, name: str | None) -> ResolvedTask:
    """What to evaluate: what the run itself ran, the task `name` of its set, or another task of the same widths.

    Raises ConfigError.
    """
    if name is None or (own.config.set is None and name == own.config.name):
        return own  # with the run's own backend
    if own.config.set is not None:
        member = own.member(name)
        if member is not None:
            return own.alone(member)
        if len(own.spec.tasks) > 1:
            raise ConfigError(
                f"--task {name}: is not one of the tasks of {own.spec.label}, which the checkpoint was trained on: "
                f"{', '.join(info.plain_name for info in own.spec.tasks)}"
            )
    chosen = {"name": name, "set": None, "tasks": None, "only": None, "backend": "auto"}
    other = resolve(own.config.model_copy(update=chosen))
    widths = [(spec.obs_dim, spec.action_dim) for spec in (other.spec, own.spec)]
    if widths[0] != widths[1]:
        raise ConfigError(
            f"--task {name}: has {widths[0][0]} observations and {widths[0][1]} actions, but the checkpoint was "
            f"trained on {own.spec.label} with {widths[1][0]} and {widths[1][1]}; evaluate it on a task of its size"
        )
    return other


def evaluation_episodes(task: ResolvedTask, episodes: int) -> int:
    """`episodes`, rounded up so that every task of a set gets equally many; says so where it rounds."""
    tasks = len(task.running.tasks)
    even = -(-episodes // tasks) * tasks
    if even != episodes:
        log.info(
            "evaluation: %d episodes do not come out even over the %d tasks of '%s'; it takes %d, %d of each task",
            *(episodes, tasks, task.label, even, even // tasks),
        )
    return even


def evaluation_env(task: ResolvedTask, episodes: int, seed: int, device: torch.device) -> VectorEnv:
    """A separate environment to evaluate in; the training one keeps its episodes.

    Of a set, every task gets equally many environments and every environment equally many episodes: those that
    `evaluation_episodes` gives.
    """
    tasks = len(task.running.tasks)
    count = min(episodes, EVALUATION_ENVS)
    if tasks > 1:  # as many of each task as fit and share its episodes out evenly
        each = -(-episodes // tasks)
        most = max(EVALUATION_ENVS // tasks, 1)
        count = tasks * max(share for share in range(1, most + 1) if each % share == 0)
    return make_env(task, num_envs=count, seed=seed, device=str(device))


def evaluation_seed(seed: int, epoch: int) -> int:
    """A seed that no training environment uses (those use the run's seed itself), new for each epoch."""
    return EVALUATION_SEED_BASE + (seed << 24) + epoch


def _film(acting: Acting, task: ResolvedTask, seed: int, video: Path) -> None:
    from flowmbpo.tracking.video import write_video

    with open_env(task, 1, workers=0) as env:
        write_video(film_episodes(acting.act, env, 1, seed), video, FRAMES_PER_SECOND)


def _metrics_beside(checkpoint: Path) -> Path:
    metrics = checkpoint.parent.parent / "metrics.jsonl"
    if not metrics.is_file():
        raise RunDirectoryError(
            f"--plot: {checkpoint} lies in no run directory, so there is no metrics.jsonl to draw; "
            "name a run directory, or a checkpoint inside one"
        )
    return metrics
