"""How fast the locomotion tasks step, behind the vector-environment contract.

    python benchmarks/locomotion.py [TASK ...] [--envs 128] [--threads 1 2] [--steps 200] [--rounds 5] [--json FILE]

Random actions in [-1, 1], episodes' ends included. The numbers of threads take turns, round by round, and
the medians over the rounds count, with their range. CPU seconds are those of the whole process, its threads
included. Wall-clock figures mean something on a quiet machine only: the load average is printed with them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.make import cores, make_env

WARM_UP = 20  # steps that are not measured


@dataclass(frozen=True)
class Speed:
    """Steps of one environment per second: the median over rounds, the slowest and the fastest."""

    median: float
    slowest: float
    fastest: float


def measure(env: VectorEnv, actions: Tensor) -> tuple[float, float]:
    """Steps per wall-clock second and per CPU second along `actions` [T, N, A]."""
    wall, cpu = time.perf_counter(), time.process_time()
    for action in actions:
        env.step(action)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    steps = actions.shape[0] * actions.shape[1]
    return steps / wall, steps / cpu


def compare_threads(name: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """One row per number of threads."""
    envs = {count: make_env(TaskConfig(name=name, num_envs=options.envs), workers=count) for count in options.threads}
    rounds: dict[int, list[tuple[float, float]]] = {count: [] for count in envs}
    width = next(iter(envs.values())).spec.action_dim
    actions = 2 * torch.rand(options.steps, options.envs, width, generator=torch.Generator().manual_seed(0)) - 1
    for env in envs.values():
        env.reset(0)
        measure(env, actions[:WARM_UP])
    for _ in range(options.rounds):
        for count, env in envs.items():
            rounds[count].append(measure(env, actions))
    for env in envs.values():
        env.close()
    return [
        {
            "task": name,
            "envs": options.envs,
            "threads": count,
            "per_wall_second": asdict(summarise([wall for wall, _ in measured])),
            "per_cpu_second": asdict(summarise([cpu for _, cpu in measured])),
        }
        for count, measured in rounds.items()
    ]


def summarise(values: list[float]) -> Speed:
    """Median and range."""
    return Speed(statistics.median(values), min(values), max(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=["mujoco-ant", "mujoco-hopper"])
    parser.add_argument("--envs", type=int, default=128)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores()}))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the simulation's threads are not torch's
    load = os.getloadavg()[0]
    rows = [row for task in options.tasks for row in compare_threads(task, options)]
    print(f"{cores()} cores, load average {load:.2f} before the start")
    for row in rows:
        print(f"{row['task']}  {row['envs']} environments, {row['threads']} threads")
        for key in ("per_wall_second", "per_cpu_second"):
            speed = Speed(**row[key])  # type: ignore[arg-type]
            print(f"  {key:16} {speed.median:9,.0f}  ({speed.slowest:,.0f} to {speed.fastest:,.0f})")
    if options.json:
        options.json.write_text(json.dumps({"cores": cores(), "load_average": load, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
