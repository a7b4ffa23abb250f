"""One full epoch of every paper-scale preset at its published size: seconds, and who takes them.

    python benchmarks/epochs.py --backend mujoco --out epochs-mujoco.csv
    python benchmarks/epochs.py --backend dflex --out epochs-dflex.csv

Without `--presets` all 5M presets of phases 1, 1.5 and 2 are run. The environment is made and started
once for all; each preset then trains one epoch (128 environments x H steps, 8 model updates, one actor
update, 8 x 4 critic minibatches) with a fresh agent and replay buffer, after one epoch whose time is not
counted (`--no-warm-up` leaves that out). Random episodes and model-only updates before it are left out.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.envs.resolve import resolve
from flowmbpo.presets.load import load_experiment, preset_info
from flowmbpo.runs.start import begin
from flowmbpo.runs.train import assembled, run_epoch
from flowmbpo.training import learner

PHASES = ("phase1", "phase1p5", "phase2")
NO_START = ("training.random_episodes=0", "training.warmup_model_updates=0")
PARTS = ("environment", "model", "actor", "critic")
Place = tuple[str, object, str]
"""A part's name, and the function that is timed for it: its owner (a module, an object) and its name there."""
UPDATES: tuple[Place, ...] = tuple((part, learner, f"update_{part}") for part in ("model", "actor", "critic"))
FIELDS = (
    "preset",
    "task",
    "seconds",
    "cpu_seconds",
    *PARTS,
    "rest",
    "agent_steps",
    "loss_dynamics",
    "loss_actor",
    "loss_critic",
)


def small_presets() -> list[str]:
    """The 5M presets of the three phases."""
    return [info.name for info in preset_info() if info.phase in PHASES and not info.name.endswith("-48m")]


@dataclass
class Spent:
    """Seconds by the clock and of this process's CPU (all its threads), and how many calls took them."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    calls: int = 0


@contextmanager
def timed(places: Iterable[Place]) -> Iterator[dict[str, Spent]]:
    """What each part takes while inside; places of the same part add up."""
    spent: dict[str, Spent] = {}

    def timer(part: Spent, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start, start_cpu = time.perf_counter(), time.process_time()
            result = function(*args, **kwargs)
            part.seconds += time.perf_counter() - start
            part.cpu_seconds += time.process_time() - start_cpu
            part.calls += 1
            return result

        return call

    with ExitStack() as stack:
        for part, owner, name in places:
            function = timer(spent.setdefault(part, Spent()), getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, function))
        yield spent


def measure(config: ExperimentConfig, warm_up: bool) -> dict[str, Any]:
    """One row of the table."""
    task = resolve(config.task)
    with assembled(begin(config, task, None), torch.device("cpu"), Path("unused")) as (learner, collector):
        assert collector is not None
        if warm_up:
            run_epoch(learner, collector)
        steps = collector.agent_steps
        with timed([("environment", collector.env, "step"), *UPDATES]) as spent:
            start, start_cpu = time.perf_counter(), time.process_time()
            metrics = run_epoch(learner, collector)
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
        steps = collector.agent_steps - steps
    shares = {part: spent[part].seconds / seconds for part in PARTS}
    row = {"preset": config.name, "task": task.label, "seconds": seconds, "cpu_seconds": cpu_seconds, **shares}
    row |= {"rest": 1.0 - sum(shares.values()), "agent_steps": steps}
    return row | {f"loss_{name}": metrics[f"loss/{name}"] for name in ("dynamics", "actor", "critic")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("mujoco", "dflex"), default="mujoco")
    parser.add_argument("--presets", nargs="*", help="names; default: every 5M preset of phases 1, 1.5 and 2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-warm-up", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    print(
        f"{'preset':36} {'task':12} {'s/epoch':>8} {'CPU-s':>8} " + " ".join(f"{part:>11}" for part in (*PARTS, "rest"))
    )
    for name in args.presets or small_presets():
        config = load_experiment(name, [f"task.backend={args.backend}", *NO_START])
        row = measure(config.model_copy(update={"name": name}), not args.no_warm_up)
        rows.append(row)
        shares = " ".join(f"{100 * row[part]:10.1f}%" for part in (*PARTS, "rest"))
        print(f"{name:36} {row['task']:12} {row['seconds']:8.2f} {row['cpu_seconds']:8.2f} {shares}", flush=True)
    if args.out is not None:
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)


if __name__ == "__main__":
    sys.exit(main())
