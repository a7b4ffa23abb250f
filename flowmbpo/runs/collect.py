"""A dataset recorded in real environments, by policies that need no learning and by those of checkpoints."""

from __future__ import annotations

import itertools
import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowmbpo.config.task import TaskConfig
from flowmbpo.data.dataset.format import MANIFEST, read_manifest
from flowmbpo.data.dataset.writer import DatasetWriter
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.make import make_env
from flowmbpo.envs.resolve import resolve
from flowmbpo.envs.simulators import simulators
from flowmbpo.errors import DataError
from flowmbpo.evaluation.episodes import record_episodes
from flowmbpo.json_documents import Document
from flowmbpo.runs.policies import Disturbance, PolicyRequest, RecordingPolicy, load_policy
from flowmbpo.runs.start import resolve_device
from flowmbpo.spec import EnvSpec

log = logging.getLogger("flowmbpo")

_SEED_DOMAIN = 0xDA7A  # keeps the episodes of datasets apart from those of training and evaluation


@dataclass(frozen=True)
class Recorded:
    """What one policy, by its place in the list, did in one task."""

    task: str
    policy: int
    episodes: int
    transitions: int
    return_mean: float
    return_std: float
    success: float | None
    faults: int


@dataclass(frozen=True)
class CollectOutcome(Document):
    """What `data collect --json` prints."""

    path: str
    set: str
    episodes: int
    transitions: int
    fingerprint: str
    policies: list[dict[str, Any]]
    recorded: list[dict[str, Any]]


@dataclass(frozen=True)
class Simulation:
    """How episodes are simulated. Copies change which episodes come out, workers and device only the speed."""

    seed: int = 0
    num_envs: int = 16
    workers: int | None = None
    device: str = "cpu"


_DEFAULT, _NONE = Simulation(), Disturbance()


def collect(
    dest: Path,
    config: TaskConfig,
    requests: Sequence[PolicyRequest],
    *,
    episodes: int,
    simulation: Simulation = _DEFAULT,
    disturbance: Disturbance = _NONE,
    report: Callable[[Recorded], None] | None = None,
) -> CollectOutcome:
    """Record `episodes` (or a policy's own number of) episodes of every task by every policy into a dataset.

    A checkpoint supplies the tasks that it was trained on, matched by plain name; a single task's supplies that one.
    Its actions are disturbed by `disturbance`. Equal arguments give equal datasets. An interrupted call is repeated:
    what is there up to the last finished policy of a task is kept, and the end is the same.

    Raises ConfigError, CheckpointError, EnvironmentUnavailableError, EnvironmentFailure, DataError, StorageError.
    """
    resolved = resolve(config)
    spec, only = resolved.spec, resolved.only
    wanted = range(len(spec.tasks)) if only is None else [only]
    device = resolve_device(simulation.device)
    policies = [load_policy(request, spec, wanted, episodes, disturbance, device) for request in requests]
    for notice in resolved.notices:
        log.warning("%s", notice)
    asked = {
        "kind": "collected",
        "tasks": [spec.tasks[task].name for task in wanted],
        "policies": [policy.record for policy in policies],
        "seed": simulation.seed,
        "num_envs": simulation.num_envs,
        "simulators": simulators(spec),
    }
    units = [(task, place) for task in wanted for place, policy in enumerate(policies) if task in policy.members]
    with _begin(dest, spec, asked) as writer:
        rows: list[dict[str, Any]] = list(writer.source["recorded"])
        for task, own in itertools.groupby(units[len(rows) :], key=lambda unit: unit[0]):
            most = max(policy.episodes for policy in policies if task in policy.members)
            num_envs = min(simulation.num_envs, most)
            env = make_env(resolved.alone(task), num_envs, simulation.workers, device=str(device))
            try:
                for _, place in own:
                    recorded = _record(writer, env, policies[place], task, place, simulation.seed)
                    rows.append(asdict(recorded))
                    writer.source = {**asked, "recorded": rows}
                    writer.checkpoint(seal=True)
                    if report is not None:
                        report(recorded)
            finally:
                env.close()
        dataset = writer.finish()
        figures = dataset.episodes, dataset.transitions, dataset.fingerprint
        origins = dataset.source["policies"], dataset.source["recorded"]
        return CollectOutcome(str(dataset.path), dataset.set_name, *figures, *origins)


def _begin(dest: Path, spec: EnvSpec, asked: dict[str, Any]) -> DatasetWriter:
    """A new dataset, or the unfinished one that the same call began. Raises DataError."""
    if not (dest / MANIFEST).is_file():
        return DatasetWriter.create(dest, spec.label, spec.tasks, {**asked, "recorded": []})
    manifest = read_manifest(dest)
    if manifest.complete:
        raise DataError(f"{dest}: holds a finished dataset. Name another folder, or remove this one first.")
    begun = {key: manifest.source.get(key) for key in asked}
    same_tasks = [task.name for task in manifest.tasks] == [task.name for task in spec.tasks]
    if begun != asked or not same_tasks or manifest.set_name != spec.label:
        raise DataError(
            f"{dest}: holds an unfinished dataset of other tasks, policies, seed or copies. Give the same command as "
            "then to go on with it, or remove the folder, or name another."
        )
    return DatasetWriter.resume(dest)


def _record(
    writer: DatasetWriter, env: VectorEnv, policy: RecordingPolicy, task: int, place: int, seed: int
) -> Recorded:
    """All episodes of one policy, by its place in the list, in one task; seeds are of their own for every such pair."""
    drawn = np.random.SeedSequence([_SEED_DOMAIN, seed, task, place]).generate_state(2, np.uint64)
    behaviour = policy.behaviour(env.spec, task, env.num_envs, int(drawn[1] >> np.uint64(2)))
    returns, transitions, successes, faults = [], 0, [], 0
    for episode in record_episodes(env, behaviour, policy.episodes, int(drawn[0] >> np.uint64(1))):
        writer.add(task, episode.obs, episode.action, episode.reward, episode.terminated, source=place)
        returns.append(episode.return_)
        transitions += len(episode.reward)
        faults += episode.faults
        if episode.success is not None:
            successes.append(episode.success)
    return Recorded(
        task=env.spec.tasks[task].name,
        policy=place,
        episodes=policy.episodes,
        transitions=transitions,
        return_mean=statistics.fmean(returns),
        return_std=statistics.pstdev(returns),
        success=statistics.fmean(successes) if successes else None,
        faults=faults,
    )
