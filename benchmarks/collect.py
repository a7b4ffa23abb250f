"""What collecting through worker processes costs, against dm_control stepped by hand.

    python benchmarks/collect.py [--task walker-stand] [--envs 16] [--steps 200] [--rounds 5] [--json FILE]

A: the plain loop, one process, no vector environment: `suite.load`, action repeat 2, observations
flattened to float32. B: `make_env` with one worker per core. Both take the same actions; the runs
alternate (A B A B ...) and the medians count. CPU seconds are those of the parent and its workers,
both measured over the steps alone. Wall-clock ratios mean something on a quiet machine only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measured:
    """One run: agent steps per second of CPU time and of wall-clock time."""

    per_cpu_second: float
    per_wall_second: float


def main() -> None:
    options = _options()
    from flowmbpo.envs.config import TaskConfig
    from flowmbpo.envs.make import cores, make_env

    plain = PlainLoop(options.task, options.envs)
    env = make_env(TaskConfig(name=options.task, num_envs=options.envs, workers=options.workers))
    env.reset(0)
    actions = _actions(options.steps, options.envs, env.spec.action_dim)
    plain.measure(actions[:10])
    _measure(env, actions[:10])
    runs: dict[str, list[Measured]] = {"plain": [], "workers": []}
    for _ in range(options.rounds):
        runs["plain"].append(plain.measure(actions))
        runs["workers"].append(_measure(env, actions))
    env.close()
    result = {
        "task": options.task,
        "envs": options.envs,
        "workers": options.workers or min(cores(), options.envs),
        "cores": cores(),
        "load_average": os.getloadavg()[0],
        **{name: asdict(_median(measured)) for name, measured in runs.items()},
    }
    result["cpu_ratio"] = result["workers"]["per_cpu_second"] / result["plain"]["per_cpu_second"]
    result["wall_ratio"] = result["workers"]["per_wall_second"] / result["plain"]["per_wall_second"]
    _show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


class PlainLoop:
    """The copies of a task, stepped one after another with dm_control's own `step`."""

    def __init__(self, task: str, envs: int) -> None:
        import numpy as np

        from flowmbpo.envs.dmcontrol.suite import load_suite_task

        self._environments = [load_suite_task(task) for _ in range(envs)]
        for index, environment in enumerate(self._environments):
            environment.task.random.seed(index)
            environment.reset()
        self._flatten = lambda values: np.concatenate([np.ravel(value) for value in values]).astype(np.float32)

    def measure(self, actions: object) -> Measured:
        """Step through `actions` [T, N, A]."""
        import numpy as np

        cpu, wall = time.process_time(), time.perf_counter()
        table = np.asarray(actions)
        for row in table:
            for environment, action in zip(self._environments, row, strict=True):
                reward = 0.0
                for _ in range(2):
                    step = environment.step(action)
                    reward += step.reward or 0.0  # None at the first step of an episode
                self._flatten(step.observation.values())
        steps = len(table) * len(self._environments)
        return Measured(steps / (time.process_time() - cpu), steps / (time.perf_counter() - wall))


def _measure(env: object, actions: object) -> Measured:
    """Step the vector environment through `actions` [T, N, A]."""
    import torch

    from flowmbpo.envs.base import VectorEnv

    assert isinstance(env, VectorEnv)
    table = torch.as_tensor(actions)
    workers = env.cpu_seconds()
    cpu, wall = time.process_time(), time.perf_counter()
    for row in table:
        env.step(row)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    steps = len(table) * env.num_envs
    return Measured(steps / (cpu + env.cpu_seconds() - workers), steps / wall)


def _actions(steps: int, envs: int, action_dim: int) -> object:
    import numpy as np

    return np.random.default_rng(0).uniform(-1, 1, (steps, envs, action_dim)).astype(np.float32)


def _median(runs: list[Measured]) -> Measured:
    return Measured(
        statistics.median(run.per_cpu_second for run in runs), statistics.median(run.per_wall_second for run in runs)
    )


def _show(result: dict) -> None:
    print(f"{result['envs']} x {result['task']}, {result['cores']} cores, load {result['load_average']:.1f}")
    for name in ("plain", "workers"):
        measured = result[name]
        print(
            f"{name:>8}: {measured['per_cpu_second']:8.0f} agent steps per CPU-second, "
            f"{measured['per_wall_second']:8.0f} per second"
        )
    print(f"   ratio: {result['cpu_ratio']:8.2f} per CPU-second, {result['wall_ratio']:.2f} by the clock")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="walker-stand")
    parser.add_argument("--envs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200, help="agent steps of every copy in one run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, help="worker processes (default: one per core)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
