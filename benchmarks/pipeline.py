"""A -> C and A -> B -> C against C from scratch, on mini3, with C's task also held out of A.

    python benchmarks/pipeline.py run --data DATASET --out FOLDER --seeds 0 1 2 --arm residual --jobs 2
    python benchmarks/pipeline.py summarise FOLDER [--csv FILE]

`run` starts one `flowmbpo` process per run, those of earlier stages first, and leaves finished runs alone: it can be
stopped and started again. All C runs of a task and seed differ in their initial weights alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from flowmbpo.runs.directory import read_run

TASKS = ("reacher-easy", "walker-stand", "cheetah-run")
PATHS = ("scratch", "a", "ab", "held")
TITLES = {"scratch": "C from scratch", "a": "A -> C", "ab": "A -> B -> C", "held": "A without the task -> C"}
LAST_EVALUATIONS = 2
RESAMPLES = 10_000


@dataclass(frozen=True)
class Run:
    """One command; `out` is its run directory."""

    out: Path
    arguments: tuple[str, ...]

    def command(self, extra: Sequence[str]) -> list[str]:
        """The whole command line."""
        return [sys.executable, "-m", "flowmbpo_cli", *self.arguments, *extra, "--out", str(self.out), "--json"]

    @property
    def done(self) -> bool:
        """Whether it has ended well."""
        record = self.out / "run.json"
        return record.is_file() and json.loads(record.read_text())["status"] == "done"


def stages(folder: Path, data: Path, seed: int, arm: str) -> dict[str, list[list[Run]]]:
    """The runs of one seed, by what they are for; those of one list may run side by side, after the lists before."""
    base = folder / arm / f"seed{seed}"
    common = ("--seed", str(seed))
    offline = ("pretrain", "--preset", f"mini3-a-{arm}", "--data", str(data), *common)
    online = ("--preset", f"mini3-c-{arm}", *common)
    scratch, start, whole, left_out, held = [], [], [], [], []
    for task in TASKS:
        own = ("--set", f"task.only={task}", "--set", "evaluation.at_start=true")
        scratch.append(Run(base / f"c-scratch-{task}", ("train", *online, *own)))
        rest = [other for other in TASKS if other != task]
        fewer = ("--set", f"task.set=mini3-without-{task}", "--set", f"task.tasks=[{', '.join(rest)}]")
        left_out.append(Run(base / f"a-without-{task}", (*offline, *fewer)))
        for path, origin, runs in (("a", "a", start), ("ab", "b", whole), ("held", f"a-without-{task}", held)):
            chosen = ("specialize", *online, "--from", str(base / origin), "--task", task)
            runs.append(Run(base / f"c-{path}-{task}", chosen))
    b = Run(base / "b", ("finetune", "--preset", f"mini3-b-{arm}", "--from", str(base / "a"), *common))
    return {"a": [[Run(base / "a", offline), *scratch], start], "ab": [[b], whole], "held": [left_out, held]}


def execute(run: Run, extra: Sequence[str]) -> str:
    """Run it (or go on with it), and say how it ended."""
    if run.done:
        return f"{run.out}: was done"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = run.command(extra)
    if (run.out / "checkpoints" / "latest.pt").is_file():
        command = [sys.executable, "-m", "flowmbpo_cli", "train", "--resume", str(run.out), "--json"]
    run.out.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with open(run.out.with_suffix(".log"), "w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    return f"{run.out}: exit {done.returncode} after {time.monotonic() - began:.0f} s"


def run_all(folder: Path, data: Path, seeds: Sequence[int], arm: str, jobs: int, extra: Sequence[str]) -> None:
    """Every run: A -> C and C from scratch of all seeds first, then A -> B -> C, then the tasks held out."""
    planned = {seed: stages(folder.absolute(), data.absolute(), seed, arm) for seed in seeds}
    with ThreadPoolExecutor(jobs) as pool:
        for purpose in ("a", "ab", "held"):
            for seed in seeds:
                for runs in planned[seed][purpose]:
                    for line in pool.map(lambda run: execute(run, extra), runs):
                        print(line, flush=True)


@dataclass(frozen=True)
class Curve:
    """A finished C run: evaluations (agent steps, mean return) in their order, and the final return."""

    seed: int
    task: str
    path: str
    points: tuple[tuple[int, float], ...]
    final: float
    outcome: dict

    @property
    def settled(self) -> float:
        """Mean of the last evaluations and of the final one."""
        return statistics.fmean([value for _, value in self.points[-LAST_EVALUATIONS:]] + [self.final])

    def steps_to(self, value: float) -> float:
        """Agent steps of the first evaluation at or above `value`; infinite where none is."""
        return next((float(steps) for steps, reached in self.points if reached >= value), math.inf)

    @property
    def steps(self) -> int:
        """Agent steps of the whole run."""
        return int(self.outcome["agent_steps"])

    @property
    def data(self) -> int:
        """Transitions of the datasets that its ancestors learnt from, each dataset once per run."""
        return sum(int(run["data_transitions"]) for run in self.outcome["lineage"])

    @property
    def earlier_steps(self) -> int:
        """Agent steps of its ancestors."""
        return sum(int(run["agent_steps"]) for run in self.outcome["lineage"][:-1])


def curves(folder: Path) -> Iterator[Curve]:
    """Every finished C run under `folder`."""
    for record in sorted(folder.glob("seed*/c-*/run.json")):
        _, path, task = record.parent.name.split("-", 2)
        run = read_run(record.parent)
        if run["status"] != "done":
            continue
        rows = [json.loads(line) for line in (record.parent / "metrics.jsonl").read_text().splitlines()]
        points = [(row["agent_steps"], row["eval/return_mean"]) for row in rows if "eval/return_mean" in row]
        final = float(run["outcome"]["final_return_mean"])
        seed = int(record.parent.parent.name.removeprefix("seed"))
        yield Curve(seed, task, path, tuple(points), final, run["outcome"])


def interval(values: Sequence[float]) -> str:
    """Mean and its 95% bootstrap interval over seeds."""
    if len(values) < 2:
        return f"{values[0]:.0f}" if values else "-"
    rng = random.Random(0)
    means = sorted(statistics.fmean(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return f"{statistics.fmean(values):.0f} [{means[RESAMPLES // 40]:.0f}, {means[-RESAMPLES // 40]:.0f}]"


def shares(found: dict[tuple[str, str, int], Curve], task: str, path: str, counted: str) -> list[float]:
    """Per seed: steps until the scratch return was reached, over scratch's own steps.

    `counted`: `c` counts C's steps alone, `all` also the agent steps of A and B and A's transitions.
    """
    result = []
    for (own_task, own_path, seed), curve in sorted(found.items()):
        if (own_task, own_path) != (task, path) or (task, "scratch", seed) not in found:
            continue
        scratch = found[task, "scratch", seed]
        before = curve.data + curve.earlier_steps if counted == "all" else 0
        result.append((curve.steps_to(scratch.settled) + before) / scratch.steps)
    return result


def summarise(folder: Path, table: Path | None) -> None:
    """Print the tables; `table` is written with one row per run."""
    found = {(curve.task, curve.path, curve.seed): curve for curve in curves(folder)}
    print("| task | path | return at the end | at the start | share of C's steps to the scratch return | all steps |")
    print("|---|---|---|---|---|---|")
    for task in TASKS:
        for path in PATHS:
            own = [curve for (t, p, _), curve in sorted(found.items()) if (t, p) == (task, path)]
            if not own:
                continue
            start = [curve.outcome["start"]["return_mean"] for curve in own if curve.outcome["start"]]
            alone, whole = shares(found, task, path, "c"), shares(found, task, path, "all")
            print(
                f"| {task} | {TITLES[path]} | {interval([c.settled for c in own])} | {interval(start)} "
                f"| {', '.join(f'{100 * s:.0f}%' for s in alone)} | {', '.join(f'{100 * s:.0f}%' for s in whole)} |"
            )
    if table is not None:
        with open(table, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["task", "path", "seed", "settled", "final", "agent_steps", "earlier_steps", "data", "cpu_s"]
            )
            for curve in found.values():
                cpu = round(curve.outcome["cpu_s"], 1)
                own = [curve.task, curve.path, curve.seed, round(curve.settled, 1), round(curve.final, 1)]
                writer.writerow([*own, curve.steps, curve.earlier_steps, curve.data, cpu])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    run = commands.add_parser("run")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    run.add_argument("--arm", default="residual", help="which mini3 presets: baseline, flowpolicy, flowwm, ...")
    run.add_argument("--jobs", type=int, default=1)
    run.add_argument("--set", dest="overrides", action="append", default=[], help="for every run alike")
    show = commands.add_parser("summarise")
    show.add_argument("folder", type=Path)
    show.add_argument("--csv", type=Path)
    given = parser.parse_args()
    if given.what == "run":
        extra = [part for text in given.overrides for part in ("--set", text)]
        run_all(given.out, given.data, given.seeds, given.arm, given.jobs, extra)
    else:
        summarise(given.folder, given.csv)


if __name__ == "__main__":
    main()
