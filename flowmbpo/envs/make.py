"""From a task's config to a running vector environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from flowmbpo.config.task import PerturbationConfig, TaskConfig
from flowmbpo.envs.batch import BatchSimulator, BatchVectorEnv
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.episodes import assign_tasks
from flowmbpo.envs.mixed import MixedVectorEnv
from flowmbpo.envs.mujoco import NO_OPENGL, environment_variables
from flowmbpo.envs.processes.group import SimulatorFactory
from flowmbpo.envs.processes.vector import WorkerVectorEnv
from flowmbpo.envs.resolve import ResolvedTask, resolve
from flowmbpo.envs.simulators import require_installed
from flowmbpo.spec import EnvSpec, TaskInfo

IN_PROCESSES = ("dmcontrol", "metaworld")
"""Simulators that step one environment at a time, in worker processes; the others step a batch in this one."""


def make_env(
    task: TaskConfig | ResolvedTask,
    num_envs: int | None = None,
    workers: int | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
) -> VectorEnv:
    """The environment of `task`; `num_envs` and `workers` override its config.

    Simulators that step single environments get one worker process per core unless told otherwise, never
    more than environments; `workers=0` keeps them in this process. `seed` shuffles the tasks of a set
    over the environments; `device` is where a simulator that can (dflex, rewarped) computes. Where one member of
    a set runs alone, all environments run it, with the set's widths and ids: only its simulator is needed. Raises
    ConfigError on an unknown task or backend, EnvironmentUnavailableError where a simulator is missing.
    """
    resolved = task if isinstance(task, ResolvedTask) else resolve(task)
    config, spec, only = resolved.config, resolved.spec, resolved.only
    for info in resolved.running.tasks:
        require_installed(info.simulator, info.name)
    count = config.num_envs if num_envs is None else num_envs
    if workers is None:
        workers = cores() if config.workers is None else config.workers
    ids = assign_tasks(spec, count, seed, only)
    families: dict[str, list[int]] = {}  # the environments that one vector environment can step together
    for row, task_id in enumerate(ids):
        info = spec.tasks[task_id]
        families.setdefault("processes" if info.simulator in IN_PROCESSES else info.name, []).append(row)
    groups = list(families.values())
    parts = [_part(spec, [ids[row] for row in rows], workers, config.perturbation, device) for rows in groups]
    if len(parts) == 1 and (only is None or len(spec.tasks) == 1):
        return parts[0]
    return MixedVectorEnv(spec, parts, groups, ids)


def cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _part(spec: EnvSpec, ids: list[int], workers: int, perturbation: PerturbationConfig, device: str) -> VectorEnv:
    task, count = spec.tasks[ids[0]], len(ids)
    simulator: BatchSimulator
    match task.simulator:
        case "toy":
            from flowmbpo.envs.toy.system import ToyBatch
            from flowmbpo.envs.toy.systems import toy_system

            simulator = ToyBatch(toy_system(task), count)
        case "mujoco":
            from flowmbpo.envs.locomotion.environment import LocomotionSimulator

            simulator = LocomotionSimulator(task, count, workers, perturbation)
        case "dflex":
            from flowmbpo.envs.dflex.environment import DflexBatch

            simulator = DflexBatch(task, count, device)
        case "rewarped":
            from flowmbpo.envs.rewarped import RewarpedBatch

            simulator = RewarpedBatch(task, count, device)
        case _:
            used = sorted(set(ids))
            chosen = tuple(spec.tasks[each] for each in used)
            makes = [_factory(each, perturbation) for each in chosen]
            own = EnvSpec(chosen, spec.name if len(used) == len(spec.tasks) else f"{spec.name}-part")
            return WorkerVectorEnv(own, makes, [used.index(each) for each in ids], workers)
    return BatchVectorEnv(simulator, spec if len(spec.tasks) == 1 else None)


def _factory(task: TaskInfo, perturbation: PerturbationConfig) -> SimulatorFactory:
    if task.simulator == "metaworld":
        from flowmbpo.envs.metaworld import MetaWorldSimulator

        return partial(MetaWorldSimulator, task.name, task.action_repeat)
    from flowmbpo.envs.dmcontrol.simulator import DMControlSimulator

    length = task.episode_length
    return partial(
        DMControlSimulator, task.plain_name, task.action_repeat, perturbation=perturbation, episode_length=length
    )


@contextmanager
def open_env(
    task: TaskConfig | ResolvedTask, num_envs: int, workers: int, *, seed: int = 0, device: str = "cpu"
) -> Iterator[VectorEnv]:
    """What `make_env` makes, closed at the end of the block.

    Simulators that are imported here get no OpenGL, so that a broken driver cannot keep them from stepping; pictures
    come from a process of their own, started later and with the user's MUJOCO_GL.
    """
    with environment_variables(NO_OPENGL):
        env = make_env(task, num_envs, workers, seed=seed, device=device)
    try:
        yield env
    finally:
        env.close()
