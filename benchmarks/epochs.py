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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.load import load_experiment, preset_info
from flowmbpo.envs.base import VectorEnv
from flowmbpo.envs.make import make_env
from flowmbpo.runs.trainers import make_trainer
from flowmbpo.training import fog

PHASES = ("phase1", "phase1p5", "phase2")
NO_START = ("training.random_episodes=0", "training.warmup_model_updates=0")
PARTS = ("environment", "model", "actor", "critic")
FIELDS = (
    "preset",
    "task",
    "seconds",
    "cpu_seconds",
    *PARTS,
    "rest",
    "env_steps",
    "loss_dynamics",
    "loss_actor",
    "loss_critic",
)


def small_presets() -> list[str]:
    """The 5M presets of the three phases."""
    return [info.name for info in preset_info() if info.phase in PHASES and not info.name.endswith("-48m")]


@contextmanager
def timed(spent: dict[str, float], env: VectorEnv) -> Iterator[None]:
    """Add up the wall seconds of the environment's steps and of each kind of update."""

    def timer(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            spent[part] += time.perf_counter() - start
            return result

        return call

    with (
        mock.patch.object(env, "step", timer("environment", env.step)),
        mock.patch.object(fog, "update_model", timer("model", fog.update_model)),
        mock.patch.object(fog, "update_actor", timer("actor", fog.update_actor)),
        mock.patch.object(fog, "update_critic", timer("critic", fog.update_critic)),
    ):
        yield


def measure(config: ExperimentConfig, env: VectorEnv, warm_up: bool) -> dict[str, Any]:
    """One row of the table."""
    spent = dict.fromkeys(PARTS, 0.0)
    trainer = make_trainer(config, env, torch.device("cpu"), Path("unused"))
    with timed(spent, env):
        if warm_up:
            trainer.run_epoch()
        before, steps = dict(spent), trainer.env_steps
        start, start_cpu = time.perf_counter(), time.process_time()
        metrics = trainer.run_epoch()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    shares = {part: (spent[part] - before[part]) / seconds for part in PARTS}
    row = {"preset": config.name, "task": env.spec.label, "seconds": seconds, "cpu_seconds": cpu_seconds, **shares}
    row |= {"rest": 1.0 - sum(shares.values()), "env_steps": trainer.env_steps - steps}
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
    env: VectorEnv | None = None
    print(
        f"{'preset':36} {'task':12} {'s/epoch':>8} {'CPU-s':>8} " + " ".join(f"{part:>11}" for part in (*PARTS, "rest"))
    )
    for name in args.presets or small_presets():
        config = load_experiment(name, [f"task.backend={args.backend}", *NO_START])
        env = make_env(config.task) if env is None else env
        row = measure(config.model_copy(update={"name": name}), env, not args.no_warm_up)
        rows.append(row)
        shares = " ".join(f"{100 * row[part]:10.1f}%" for part in (*PARTS, "rest"))
        print(f"{name:36} {row['task']:12} {row['seconds']:8.2f} {row['cpu_seconds']:8.2f} {shares}", flush=True)
    if env is not None:
        env.close()
    if args.out is not None:
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)


if __name__ == "__main__":
    sys.exit(main())
