"""Real-environment evaluation of a checkpoint, its policy or a planner acting: table, files, video, learning curve."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from flowmbpo.checkpoints.load import Loaded, load
from flowmbpo.checkpoints.payload import architecture_mismatch
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.model import TwoHotRewardConfig
from flowmbpo.config.planner import MPPIConfig
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.make import make_env, open_env
from flowmbpo.envs.resolve import ResolvedTask, resolve
from flowmbpo.envs.simulators import simulators
from flowmbpo.errors import CheckpointError, ConfigError, RunDirectoryError
from flowmbpo.evaluation.episodes import OnStart, Policy, film_episodes
from flowmbpo.evaluation.results import RESULTS_SCHEMA, Evaluation, evaluate, write_results
from flowmbpo.json_documents import Document
from flowmbpo.models.agent import Agent, build_agent
from flowmbpo.planning.mppi import MPPIPlanner
from flowmbpo.planning.q_ensemble import imported_objective
from flowmbpo.planning.values import critic_objective
from flowmbpo.presets.load import experiment_from_dict
from flowmbpo.runs.start import resolve_device, set_up_compute
from flowmbpo.spec import EnvSpec
from flowmbpo.stages.initial import untrained_parts

log = logging.getLogger("flowmbpo")

EVALUATION_ENVS = 32  # environments evaluated side by side, at most (a set: at least one of each task)
SEED_BASE, EVALUATION_SEED_BASE = 2**62, 2**62 + 2**61
"""`eval` with seed n starts its episodes from the first plus n, periodic evaluations start theirs above the second. A
SeedSequence cuts numbers into words of 32 bits and pads with zeros, so the upper word reads as a training run's
environment index (2^39 + s would be environment 128 of seed s). It is 2^30 for `eval` and 3 * 2^29 or more for periodic
evaluations: no run has so many, and neither reaches the other's."""
LARGEST_SEED = 1_000_000_000  # as for training: larger ones would carry into the upper word
FRAMES_PER_SECOND = 30.0
FIGURES = (
    *("episodes", "return_mean", "return_std", "success", "length_mean", "faults"),
    *("per_task", "returns", "lengths", "tasks"),
)


@dataclass(frozen=True)
class EvalOutcome(Document):
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
    results: Path
    video: Path | None
    plot: Path | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document: the evaluation's figures among the other fields."""
        own = super().to_dict()
        figures = own.pop("evaluation")
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
    metrics = loaded.path.parent.parent / "metrics.jsonl"
    if plot is not None and not metrics.is_file():  # before minutes of episodes are run for it
        raise RunDirectoryError(
            f"--plot: {loaded.path} lies in no run directory, so there is no metrics.jsonl to draw; "
            "name a run directory, or a checkpoint inside one"
        )
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

    acting = make_acting(agent, config, target, used_seed, planner, loaded)
    with closing(evaluation_env(evaluated, count, config.seed, target)) as env:
        figures = evaluate(acting.act, env, count, used_seed, on_start=acting.on_start)
    origin: dict[str, Any] = {
        "checkpoint": str(loaded.path),
        "checkpoint_sha256": loaded.sha256,
        **steps_of(loaded),
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
        from flowmbpo.tracking.video import write_video

        acting = make_acting(agent, config, target, used_seed, planner, loaded)  # with draws of its own
        with open_env(evaluated, 1, workers=0) as env:
            write_video(film_episodes(acting.act, env, 1, used_seed), video, FRAMES_PER_SECOND)
    if plot is not None:
        from flowmbpo.tracking.plots import plot_learning_curve  # matplotlib: seconds that training need not wait

        plot_learning_curve(metrics, plot)
    return EvalOutcome(**origin, verified=loaded.verified, evaluation=figures, results=results, video=video, plot=plot)


def steps_of(loaded: Loaded) -> dict[str, int]:
    """How long the checkpoint's agent was trained: `epoch`, `agent_steps` and `env_steps`."""
    return {key: int(loaded.payload[key]) for key in ("epoch", "agent_steps", "env_steps")}


@dataclass(frozen=True)
class Acting:
    """Who acts at real observations, wherever they lie. `on_start` is None where nothing is remembered.

    `record` is what results say of it, JSON-able: its kind, and a planner's values, settings and counts so far.
    """

    act: Policy
    record: Callable[[], dict[str, Any]]
    on_start: OnStart | None = None


def make_acting(
    agent: Agent,
    config: ExperimentConfig,
    device: torch.device,
    seed: int,
    settings: MPPIConfig | None = None,
    loaded: Loaded | None = None,
) -> Acting:
    """Who acts, all draws decided by `seed`: the policy, deterministic or sampled as the config evaluates it.

    With `settings` MPPI, on the agent's own critic, or on the Q functions and the prior of the file that was
    imported as `loaded`. Raises CheckpointError where that planner does not fit the agent.
    """
    if settings is None:
        samples = None if config.evaluation.deterministic else torch.Generator(device).manual_seed(seed)
        return Acting(lambda obs, task: agent.act(obs.to(device), task.to(device), samples), lambda: {"kind": "policy"})
    if loaded is not None and loaded.payload.get("planner") is not None:
        objective = imported_objective(agent, loaded.payload["planner"], str(loaded.path))
    else:
        gamma = config.training.gamma
        objective = critic_objective(agent, None if gamma == "task" else gamma)
    planner = MPPIPlanner(objective, settings, torch.Generator(device).manual_seed(seed))
    written = settings.model_dump() | {"iterations": settings.iterations_for(agent.spec.action_dim)}

    def record() -> dict[str, Any]:
        return {"kind": "mppi", "values": objective.name, "settings": written, "counts": asdict(planner.counts)}

    return Acting(lambda obs, task: planner.act(obs.to(device), task.to(device)), record, planner.start)


def planning_config(config: ExperimentConfig, payload: Mapping[str, Any]) -> ExperimentConfig:
    """The config to build the agent of, where it plans: Q functions count real rewards, never their symlog."""
    reward = config.model.reward
    if payload.get("planner") is None or not isinstance(reward, TwoHotRewardConfig):
        return config
    model = config.model.model_copy(update={"reward": reward.model_copy(update={"decode": "symexp"})})
    return config.model_copy(update={"model": model})


def check_trained(loaded: Loaded, kind: Literal["policy", "mppi"]) -> None:
    """Refuse (CheckpointError) a checkpoint whose weights for acting so were never trained, and say what can be done.

    An imported world model brings no policy and no state values of ours along, and a run may train a model alone.
    """
    untrained, imported = untrained_parts(loaded.payload), "imported" in loaded.payload
    plannable = loaded.payload.get("planner") is not None or "critic" not in untrained
    if kind == "policy" and "actor" in untrained:
        lacks, effect = "a policy", "; its actor is untrained."
        own = ["plan instead (--planner mppi)"] if plannable else []
    elif kind == "mppi" and not plannable:
        lacks, effect = "Q functions", " and its critic is untrained, so there is nothing to plan with."
        own = ["import the file again with its planner (flowmbpo checkpoint import --keep-planner)"] if imported else []
    else:
        return
    why = f"was imported without {lacks}" if imported else "comes of a run that trained its world model alone"
    train = f"train one in its world model: flowmbpo train --from {loaded.path} --data DIR"
    ways = ", or ".join([*own, train, "name a checkpoint of a later stage, which has a policy"])
    raise CheckpointError(f"{loaded.path}: {why}{effect} {ways[0].upper()}{ways[1:]}.")


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
