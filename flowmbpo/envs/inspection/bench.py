"""What an environment costs here: agent steps per second, per CPU-second, and what starting takes."""

from __future__ import annotations

import time
from dataclasses import dataclass

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.inspection.recording import random_actions
from flowmbpo.envs.make import cores, open_env
from flowmbpo.errors import ConfigError

_ACTIONS = 64  # different random actions, taken in turn: drawing them is not what is timed


@dataclass(frozen=True)
class BenchResult:
    """Timings of one environment under uniform random actions.

    `agent_steps` counts all copies. `cpu_s` is the CPU time of the timed steps in this process and
    in its workers; `construction_s` includes the first reset, `reset_s` is another one.
    """

    environment: str
    copies: int
    workers: int
    construction_s: float
    reset_s: float
    agent_steps: int
    episodes: int
    faults: int
    wall_s: float
    cpu_s: float
    steps_per_s: float
    steps_per_cpu_s: float  # what a loaded machine changes least


def bench_environment(
    config: TaskConfig,
    *,
    copies: int | None = None,
    workers: int | None = None,
    seconds: float = 5.0,
    seed: int = 0,
    device: str = "cpu",
) -> BenchResult:
    """Step the environment for `seconds` of wall-clock and at least once; `copies` and `workers` override `config`.

    Raises ConfigError where `seconds` is not positive, and what `make_env` raises.
    """
    if not seconds > 0:
        raise ConfigError(f"seconds: {seconds} is not a positive number")
    count = config.num_envs if copies is None else copies
    if workers is None:
        workers = cores() if config.workers is None else config.workers
    begun = time.perf_counter()
    with open_env(config, count, workers, seed=seed, device=device) as env:
        env.reset(seed)
        construction = time.perf_counter() - begun
        begun = time.perf_counter()
        env.reset(seed + 1)
        reset = time.perf_counter() - begun
        actions = random_actions(env, _ACTIONS, seed)
        env.step(actions[0])  # what only the first step does is not the speed of the others
        rounds = episodes = faults = 0
        workers_cpu, cpu, begun = env.cpu_seconds(), time.process_time(), time.perf_counter()
        wall = 0.0
        while wall < seconds:
            step = env.step(actions[rounds % _ACTIONS])
            rounds += 1
            episodes += int(step.done.sum())
            faults += len(step.faults)
            wall = time.perf_counter() - begun
        used = time.process_time() - cpu + env.cpu_seconds() - workers_cpu
        steps = rounds * env.num_envs
        starts, counts, per_s = (construction, reset), (steps, episodes, faults), (steps / wall, steps / used)
        return BenchResult(env.spec.label, env.num_envs, workers, *starts, *counts, wall, used, *per_s)
