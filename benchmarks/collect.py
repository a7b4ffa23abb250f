"""What collecting through worker processes costs, against one dm_control loop in one process.

    python benchmarks/collect.py [--task walker-walk] [--copies 64] [--workers 2] [--rounds 5] [--json FILE]

raw: ONE environment, stepped by hand in this process: `environment.step`, action repeat 2,
observations flattened to float32. workers: `make_env` with `--copies` copies, one worker per core
unless told otherwise. The two alternate; each run is whole episodes with their resets, under
uniform random actions. CPU seconds are those of this process and of the workers.

`others` is the share of the machine's cores that other programs took during a run: wall-clock
ratios mean something in quiet rounds only, those where it is below 5% in both runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

if TYPE_CHECKING:
    from flowmbpo.envs.contract import VectorEnv

REPEAT = 2
QUIET = 0.05


@dataclass(frozen=True)
class Run:
    """One run: agent steps per second of CPU time and of wall-clock time, and what others took of the machine."""

    per_cpu_second: float
    per_wall_second: float
    others: float


@dataclass(frozen=True)
class Round:
    """A raw run and the workers' run after it."""

    raw: Run
    workers: Run

    @property
    def cpu_ratio(self) -> float:
        """Agent steps per CPU second, workers over raw."""
        return self.workers.per_cpu_second / self.raw.per_cpu_second

    @property
    def wall_ratio(self) -> float:
        """Agent steps per second, workers over raw."""
        return self.workers.per_wall_second / self.raw.per_wall_second

    @property
    def quiet(self) -> bool:
        """Whether this program had the machine to itself."""
        return max(self.raw.others, self.workers.others) < QUIET


class Stopwatch:
    """Wall-clock and CPU seconds since its creation, and the CPU seconds of the whole machine."""

    def __init__(self) -> None:
        self._busy = _busy_seconds()
        self._cpu = time.process_time()
        self._wall = time.perf_counter()

    def read(self, steps: int, worker_seconds: float) -> Run:
        """A run of `steps` agent steps, for which workers took `worker_seconds` of CPU time."""
        wall = time.perf_counter() - self._wall
        cpu = time.process_time() - self._cpu + worker_seconds
        others = max(_busy_seconds() - self._busy - cpu, 0.0) / (wall * (psutil.cpu_count() or 1))
        return Run(steps / cpu, steps / wall, others)


class RawLoop:
    """One environment, stepped with dm_control's own `step`."""

    def __init__(self, task: str, episodes: int) -> None:
        from flowmbpo.envs.dmcontrol.suite import load_suite_task

        self._environment = load_suite_task(task)
        self._episodes = episodes

    def measure(self, rng: np.random.Generator) -> Run:
        """Whole episodes."""
        environment = self._environment
        shape = environment.action_spec().shape
        watch, steps = Stopwatch(), 0
        for _ in range(self._episodes):
            step = environment.reset()
            actions = iter(rng.uniform(-1, 1, (1000, *shape)).astype(np.float32))
            while not step.last():
                action, reward = next(actions), 0.0
                for _ in range(REPEAT):
                    step = environment.step(action)
                    reward += step.reward
                np.concatenate([np.ravel(value) for value in step.observation.values()]).astype(np.float32)
                steps += 1
        return watch.read(steps, 0.0)


def measure_workers(env: VectorEnv, rng: np.random.Generator) -> Run:
    """One episode of every copy."""
    import torch

    length = env.spec.tasks[0].episode_length
    shape = (length, env.num_envs, env.spec.action_dim)
    actions = torch.from_numpy(rng.uniform(-1, 1, shape).astype(np.float32))
    before = env.cpu_seconds()
    watch = Stopwatch()
    for action in actions:
        env.step(action)
    return watch.read(length * env.num_envs, env.cpu_seconds() - before)


def main() -> None:
    """Measure, print, and with `--json` write down."""
    options = _options()
    from flowmbpo.config.task import TaskConfig
    from flowmbpo.envs.make import cores, make_env

    raw = RawLoop(options.task, options.episodes)
    env = make_env(TaskConfig(name=options.task, num_envs=options.copies), workers=options.workers)
    env.reset(0)
    rng = np.random.default_rng(0)
    rounds = [Round(raw.measure(rng), measure_workers(env, rng)) for _ in range(options.rounds + 1)][1:]  # one warms up
    env.close()
    workers = options.workers or min(cores(), options.copies)
    print(f"{options.copies} x {options.task}, {workers} workers, {cores()} cores; agent steps per second")
    summary = show(rounds)
    if options.json:
        setting = {"task": options.task, "copies": options.copies, "workers": workers, "cores": cores()}
        record = {**setting, "summary": summary, "rounds": [asdict(each) for each in rounds]}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def show(rounds: list[Round]) -> dict[str, Any]:
    """Print every round, then medians and ranges over all rounds and over the quiet ones."""
    print("        raw: per CPU-s  per s  others   workers: per CPU-s  per s  others    ratio: CPU   wall")
    for number, each in enumerate(rounds, 1):
        raw, workers = each.raw, each.workers
        print(
            f"{number:5}   {raw.per_cpu_second:14.0f} {raw.per_wall_second:6.0f} {raw.others:6.0%} "
            f"{workers.per_cpu_second:20.0f} {workers.per_wall_second:6.0f} {workers.others:6.0%} "
            f"{each.cpu_ratio:14.2f} {each.wall_ratio:6.2f}"
        )
    summary: dict[str, Any] = {}
    for label, chosen in (("all", rounds), ("quiet", [each for each in rounds if each.quiet])):
        if not chosen:
            print(f"{label}: no rounds")
            continue
        cpu, wall = [each.cpu_ratio for each in chosen], [each.wall_ratio for each in chosen]
        summary[label] = {"rounds": len(chosen), "cpu_ratio": _spread(cpu), "wall_ratio": _spread(wall)}
        print(f"{label}, {len(chosen)} rounds: ratio per CPU-second {_words(cpu)}, by the clock {_words(wall)}")
    return summary


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times[:8]) - times.idle - times.iowait)  # guest time is part of user time


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _words(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} .. {max(values):.2f})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="walker-walk", help="a task of dm_control's suite, e.g. cheetah-run")
    parser.add_argument("--copies", type=int, default=64)
    parser.add_argument("--episodes", type=int, default=16, help="episodes of a raw run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, help="worker processes (default: one per core)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
