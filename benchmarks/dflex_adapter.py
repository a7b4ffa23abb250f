"""What the adapter costs: a dflex task through the environment contract, against dflex's own loop.

    python benchmarks/dflex_adapter.py [--task dflex-ant] [--envs 64] [--steps 100] [--rounds 9] [--json FILE]

A: dflex's own environment with the published settings, stepped without gradients; it restarts itself.
B: `BatchVectorEnv(DflexBatch)` on the CPU. Both take the same actions; the runs alternate
(A B, B A, ...) and the ratio is the median over rounds of B / A of the same round. Episodes start
alike in number, not in state. dflex must be installed (docs/dflex.md).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Measured:
    """One run: environment steps per second of CPU time and of wall-clock time, and episodes ended per step."""

    per_cpu_second: float
    per_wall_second: float
    ends_per_step: float


def main() -> None:
    options = _options()
    import torch

    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    raw, env = _environments(options.task, options.envs)
    actions = 2 * torch.rand(options.steps, options.envs, env.spec.action_dim, generator=rng) - 1
    raw.reset()
    env.reset(0)
    sides: dict[str, Callable[[Any], int]] = {
        "raw": lambda action: int(raw.step(action)[2].sum()),
        "adapter": lambda action: int(env.step(action).done.sum()),
    }
    runs: dict[str, list[Measured]] = {name: [] for name in sides}
    with torch.no_grad():
        for step in sides.values():
            _measure(step, actions[:20])
        for number in range(options.rounds):
            for name in sorted(sides, reverse=number % 2 == 0):
                runs[name].append(_measure(sides[name], actions))
    result = {
        "task": options.task,
        "envs": options.envs,
        "rounds": options.rounds,
        "load_average": os.getloadavg()[0],
        **{name: asdict(_median(measured)) for name, measured in runs.items()},
        "cpu_ratio": _ratio(runs, "per_cpu_second"),
        "wall_ratio": _ratio(runs, "per_wall_second"),
    }
    _show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _environments(task: str, envs: int) -> tuple[Any, Any]:
    """dflex's own environment, restarting itself, and the adapter's, both with the published settings."""
    import torch

    from flowmbpo.envs.batch import BatchVectorEnv
    from flowmbpo.envs.dflex.environment import SETTINGS, DflexBatch
    from flowmbpo.envs.tasks import all_tasks

    info = next(row for row in all_tasks("dflex") if row.name == task)
    env = BatchVectorEnv(DflexBatch(info, envs))
    environment = type(DflexBatch(info, 1).raw)
    with torch.no_grad():
        raw = environment(
            device="cpu",
            num_envs=envs,
            episode_length=info.episode_length,
            stochastic_init=True,
            no_grad=True,
            **SETTINGS[task].arguments,
        )
    return raw, env


def _measure(step: Callable[[Any], int], actions: Any) -> Measured:
    """Step through `actions` [T, N, A]."""
    ends = 0
    cpu, wall = time.process_time(), time.perf_counter()
    for action in actions:
        ends += step(action)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    count = actions.shape[0] * actions.shape[1]
    return Measured(count / cpu, count / wall, ends / len(actions))


def _median(runs: list[Measured]) -> Measured:
    return Measured(
        statistics.median(run.per_cpu_second for run in runs),
        statistics.median(run.per_wall_second for run in runs),
        statistics.median(run.ends_per_step for run in runs),
    )


def _ratio(runs: dict[str, list[Measured]], quantity: str) -> float:
    pairs = zip(runs["adapter"], runs["raw"], strict=True)
    return statistics.median(asdict(adapter)[quantity] / asdict(raw)[quantity] for adapter, raw in pairs)


def _show(result: dict[str, Any]) -> None:
    print(f"{result['task']}, {result['envs']} copies, {result['rounds']} rounds, load {result['load_average']:.2f}")
    for name in ("raw", "adapter"):
        run = result[name]
        print(
            f"  {name:8} {run['per_cpu_second']:8.0f} steps/core-s {run['per_wall_second']:8.0f} steps/s "
            f"{run['ends_per_step']:.2f} episodes ended per step"
        )
    print(f"  adapter / raw: {result['cpu_ratio']:.3f} per CPU-second, {result['wall_ratio']:.3f} wall-clock")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="dflex-ant")
    parser.add_argument("--envs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
