"""Planner against policy on trained checkpoints, in the same episodes: returns, paired differences, cost.

    python benchmarks/planning.py RUN [RUN ...] --seeds 5 --episodes 5 --out planning.csv
    python benchmarks/planning.py RUN --planner-set horizon=5 --planner-set samples=256

RUN is a run directory or a checkpoint. Of a task set, every member is measured by itself (`--tasks` names some). For
every evaluation seed the policy and MPPI run the same episodes: copy i starts equally under both. A difference is
that of a seed's mean returns; its interval is Student's t (95%) over seeds. Runs of one preset that differ in their
training seed are also compared together, one mean difference per run. `ms` is wall time per environment and action.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.checkpoints.load import Loaded, load, resolve
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.planner import MPPIConfig
from flowmbpo.diagnostics.statistics import mean_interval
from flowmbpo.envs.resolve import ResolvedTask
from flowmbpo.envs.resolve import resolve as resolve_task
from flowmbpo.evaluation.results import evaluate
from flowmbpo.presets.load import experiment_from_dict, mppi_config
from flowmbpo.runs.evaluate import (
    SEED_BASE,
    Acting,
    evaluated_task,
    evaluation_env,
    load_agent,
    make_acting,
    planning_config,
)

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """One checkpoint on one task; or, with `run` 'all', the runs of a preset that differ in their seed."""

    preset: str
    run: str
    task: str
    pairs: int
    episodes: int
    policy: float
    mppi: float
    difference: float
    low: float
    high: float
    wins: int
    policy_ms: float
    mppi_ms: float
    nonfinite: int
    fallbacks: int


@dataclass(frozen=True)
class Side:
    """A seed's episodes: mean return, ms per environment and action, sequences and plans without a finite value."""

    mean: float
    ms: float
    nonfinite: int = 0
    fallbacks: int = 0


class Timed:
    """Acts as `acting` does and adds up what that takes."""

    def __init__(self, acting: Acting) -> None:
        self.acting = acting
        self.seconds = 0.0
        self.actions = 0

    def act(self, obs: Float[Tensor, "N O"], task: Int[Tensor, " N"]) -> Float[Tensor, "N A"]:
        """The actions."""
        start = time.perf_counter()
        action = self.acting.act(obs, task)
        self.seconds += time.perf_counter() - start
        self.actions += len(action)
        return action


def tasks_of(config: ExperimentConfig, named: Sequence[str]) -> list[tuple[str, ResolvedTask]]:
    """The tasks to measure, by name."""
    own = resolve_task(config.task)
    if not named and len(own.spec.tasks) == 1:
        return [(own.label, own)]
    members = [task.plain_name for task in own.running.tasks]
    return [(name, evaluated_task(own, name)) for name in named or members]


def run_side(
    loaded: Loaded, config: ExperimentConfig, task: ResolvedTask, seed: int, episodes: int, settings: MPPIConfig | None
) -> Side:
    """One seed's episodes under the policy, or with `settings` under MPPI."""
    built = config if settings is None else planning_config(config, loaded.payload)
    agent = load_agent(loaded, built, task.spec)
    timed = Timed(make_acting(agent, config, CPU, SEED_BASE + seed, settings, loaded))
    env = evaluation_env(task, episodes, config.seed, CPU)
    try:
        figures = evaluate(timed.act, env, episodes, SEED_BASE + seed, on_start=timed.acting.on_start)
    finally:
        env.close()
    counts = timed.acting.record().get("counts", {"nonfinite": 0, "fallbacks": 0})
    ms = 1000.0 * timed.seconds / timed.actions
    return Side(figures.return_mean, ms, counts["nonfinite"], counts["fallbacks"])


def summarise(preset: str, run: str, task: str, episodes: int, pairs: Sequence[tuple[Side, Side]]) -> Row:
    """The row of paired (policy, MPPI) measurements."""
    policy, mppi = zip(*pairs, strict=True)
    differences = torch.tensor([planned.mean - own.mean for own, planned in pairs], dtype=torch.float64)
    interval = mean_interval(differences)
    return Row(
        preset=preset,
        run=run,
        task=task,
        pairs=len(pairs),
        episodes=episodes,
        policy=_mean([side.mean for side in policy]),
        mppi=_mean([side.mean for side in mppi]),
        difference=interval.value,
        low=interval.low,
        high=interval.high,
        wins=int((differences >= 0).sum()),
        policy_ms=_mean([side.ms for side in policy]),
        mppi_ms=_mean([side.ms for side in mppi]),
        nonfinite=sum(side.nonfinite for side in mppi),
        fallbacks=sum(side.fallbacks for side in mppi),
    )


def together(rows: Sequence[Row]) -> list[Row]:
    """One row for every preset and task of which there are several runs: each run's means are one pair."""
    found = []
    ordered = sorted(rows, key=lambda row: (row.preset, row.task))
    for (preset, task), group in itertools.groupby(ordered, key=lambda row: (row.preset, row.task)):
        runs = list(group)
        if len(runs) > 1:
            pairs = [
                (Side(row.policy, row.policy_ms), Side(row.mppi, row.mppi_ms, row.nonfinite, row.fallbacks))
                for row in runs
            ]
            found.append(summarise(preset, "all", task, sum(row.episodes for row in runs), pairs))
    return found


def measure(path: Path, args: argparse.Namespace, settings: MPPIConfig) -> Iterator[Row]:
    """A row for every task of one checkpoint."""
    file = resolve(path)
    loaded = load(file)
    own = experiment_from_dict(loaded.payload["config"], str(file))
    for name, task in tasks_of(own, args.tasks or ()):
        pairs = []
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            policy = run_side(loaded, own, task, seed, args.episodes, None)
            pairs.append((policy, run_side(loaded, own, task, seed, args.episodes, settings)))
        yield summarise(own.name, str(path), name, args.seeds * args.episodes, pairs)


def show(row: Row) -> str:
    """One line of the table."""
    change = f"{row.difference:+8.1f} [{row.low:+.1f}, {row.high:+.1f}]"
    return (
        f"{row.preset:32} {Path(row.run).name:20.20} {row.task:22} {row.policy:8.1f} {row.mppi:8.1f} {change:30} "
        f"{row.wins}/{row.pairs:<4} {row.policy_ms:7.2f} {row.mppi_ms:8.2f} {row.nonfinite:9} {row.fallbacks:9}"
    )


def write(path: Path, rows: Sequence[Row]) -> None:
    """All rows as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [field.name for field in fields(Row)]
        writer.writerow(names)
        for row in rows:
            values = (getattr(row, name) for name in names)
            writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in values])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    """Measure, print a table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--seeds", type=int, default=5, help="evaluation seeds of every run")
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--episodes", type=int, default=5, help="episodes of every seed")
    parser.add_argument("--tasks", nargs="*", help="default: the run's own, of a set every member")
    parser.add_argument("--planner-set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = mppi_config(args.planner_set)
    print(
        f"{'preset':32} {'run':20} {'task':22} {'policy':>8} {'mppi':>8} {'difference':30} {'wins':6} {'ms':>7} "
        f"{'mppi ms':>8} {'nonfinite':>9} {'fallbacks':>9}"
    )
    rows = []
    for path in args.runs:
        for row in measure(path, args, settings):
            rows.append(row)
            print(show(row), flush=True)
            if args.out is not None:
                write(args.out, rows)
    for row in together(rows):
        rows.append(row)
        print(show(row))
    if args.out is not None:
        write(args.out, rows)


if __name__ == "__main__":
    main()
