"""One real epoch of every 48M preset at its published size: seconds of each part, memory, losses.

    python benchmarks/stage_epochs.py --out stage-epochs.csv
    python benchmarks/stage_epochs.py --out stage-epochs.csv --presets stage-a-baseline phase6-fullflow-48m

Stages A, B and C, phases 3, 4 and 6 in five arms, by default all. Every preset runs in a fresh process, with one
thread for the networks, as its command would: config of the stage, checkpoint and dataset taken over, learner, and
one epoch with the preset's own batches, environments, horizon and widths. Rows are appended to the file; presets
that it holds already are left out, so that a stopped run goes on. `--work` keeps checkpoints and datasets.

What is read is made up, at the real shapes: an untrained 48M agent of MT30 and of MT80 as the checkpoint that stage
C and phase 3 start from (there on walker-stand), and datasets of random episodes of all 30 and 80 tasks.

Not part of an epoch and left out or shortened: random episodes and model updates before the first epoch, evaluations,
checkpoints; distillation (phase 3, dynamics of another kind than the checkpoint's) takes 2 updates of its 2,000 and
counts as start-up. Worker processes of the environment are counted in `workers_cpu` and `workers_mb` alone.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from epochs import NO_START, UPDATES, Place, timed

from flowmbpo.checkpoints.load import resolve
from flowmbpo.checkpoints.save import CheckpointStore
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.data.dataset.writer import DatasetWriter
from flowmbpo.envs.resolve import resolve as resolve_task
from flowmbpo.models.agent import seeded_agent
from flowmbpo.presets.load import load_experiment
from flowmbpo.runs.start import begin, check_config, pinned, set_up_compute
from flowmbpo.runs.train import assembled, run_epoch
from flowmbpo.spec import EnvSpec
from flowmbpo.stages.config import Request, Stage, stage_config
from flowmbpo.training.collector import Collector
from flowmbpo.training.learner import Learner
from flowmbpo_cli.sources import stored_config

TASK = "walker-stand"
ARMS = ("baseline", "fullflow", "residual", "flowwm", "flowpolicy")
SHAPES = {"mt30": ("stage-b-baseline", 500), "mt80": ("phase3-mt80-baseline", 100)}  # transitions of an episode
EPISODES = 20  # of each task
PARTS = ("data", "model", "actor", "critic", "rest")
LOSSES = ("dynamics", "reward", "actor", "critic")
MEGABYTE = 1e6
SAMPLE_SECONDS = 0.05
FIELDS = (
    *("preset", "task", "startup_s", "startup_cpu", "epoch_s", "epoch_cpu"),
    *(f"{part}_{unit}" for part in PARTS for unit in ("s", "cpu")),
    *("workers_cpu", "agent_steps", "model_updates", "peak_rss_mb", "anonymous_mb", "workers_mb"),
    *(f"loss_{name}" for name in LOSSES),
)


@dataclass(frozen=True)
class Family:
    """Presets that differ in their arm, and the command that runs them: its stage, data and checkpoint by set."""

    name: str
    stage: Stage
    data: str | None = None
    checkpoint: str | None = None
    overrides: tuple[str, ...] = ()
    suffix: str = ""

    def preset(self, arm: str) -> str:
        """The name of one of them."""
        return f"{self.name}-{arm}{self.suffix}"


FAMILIES = (
    Family("stage-b", "finetune", overrides=NO_START),
    # A distillation would need the random episodes that are left out: other dynamics start untrained there.
    Family("stage-c", "specialize", checkpoint="mt30", overrides=(*NO_START, "initial.distill_updates=0")),
    Family("phase3-mt30", "policy", data="mt30", checkpoint="mt30", overrides=("initial.distill_updates=2",)),
    Family("phase3-mt80", "policy", data="mt80", checkpoint="mt80", overrides=("initial.distill_updates=2",)),
    Family("phase4", "train", overrides=NO_START),
    Family("phase6", "train", overrides=("task.backend=mujoco", *NO_START), suffix="-48m"),
    Family("stage-a", "pretrain", data="mt30"),
)


def all_presets() -> list[str]:
    """Baseline, full flow and residual of every family, then what is between them."""
    return [family.preset(arm) for arms in (ARMS[:3], ARMS[3:]) for family in FAMILIES for arm in arms]


def family_of(preset: str) -> Family:
    """Raises SystemExit for another preset."""
    for family in FAMILIES:
        if preset in [family.preset(arm) for arm in ARMS]:
            return family
    sys.exit(f"{preset} is none of the 48M presets of the stages: {', '.join(all_presets())}")


def make_inputs(work: Path) -> None:
    """Write what is not in `work` yet: of each set a checkpoint that nothing trained, and random episodes."""
    for name, (preset, length) in SHAPES.items():
        config = load_experiment(preset)
        task = resolve_task(config.task)
        config, spec = pinned(config, task), task.spec
        if not (work / name / "checkpoint" / "latest.pt").exists():
            payload = {"config": config.model_dump(mode="json"), "epoch": 0, "agent_steps": 0, "env_steps": 0}
            agent = seeded_agent(config, spec).state_dict()
            CheckpointStore(work / name / "checkpoint").save("latest", payload | {"agent": dict(agent)})
        if not (work / name / "data").exists():
            make_dataset(work / name / "data", spec, length)


def make_dataset(path: Path, spec: EnvSpec, length: int) -> None:
    """Episodes of normal observations, uniform actions, and rewards in [0, 1] that move slowly."""
    with DatasetWriter.create(path, spec.label, spec.tasks, {"kind": "random, for a benchmark"}) as writer:
        for task, info in enumerate(spec.tasks):
            rng = np.random.default_rng(task)
            obs = rng.standard_normal((EPISODES, length + 1, info.obs_dim), np.float32)
            action = rng.uniform(-1.0, 1.0, (EPISODES, length, info.action_dim))
            phase = rng.uniform(0.0, 2.0 * math.pi, (EPISODES, 1))
            reward = 0.5 + 0.4 * np.sin(0.05 * np.arange(length) + phase) + rng.uniform(-0.1, 0.1, (EPISODES, length))
            writer.add_many(task, obs, action, reward)
        writer.finish()


def config_of(preset: str, work: Path) -> ExperimentConfig:
    """What the stage's command would run, on one thread."""
    family = family_of(preset)
    file, source = None, None
    if family.checkpoint is not None:
        file = resolve(work / family.checkpoint / "checkpoint")
        source = stored_config(file)
    request = Request(
        stage=family.stage,
        preset=preset,
        checkpoint=file,
        source=source,
        data=None if family.data is None else work / family.data / "data",
        task=TASK if family.checkpoint is not None else None,
        overrides=("compute.threads=1", *family.overrides),
        device="cpu",
    )
    return stage_config(request)


@contextmanager
def prepared(config: ExperimentConfig) -> Iterator[tuple[Learner, Collector | None]]:
    """Learner and collector of the run, as `train` makes them."""
    task = resolve_task(config.task)
    config = pinned(config, task)
    check_config(config, task)
    set_up_compute(config)
    with assembled(begin(config, task, None), torch.device("cpu"), Path("unused")) as parts:
        yield parts


def data_places(learner: Learner, collector: Collector | None) -> list[Place]:
    """Where an epoch gets its data from: acting in the environment, or waiting for windows."""
    if collector is not None:
        return [("data", learner.agent, "act"), ("data", collector.env, "step")]
    return [("data", learner.batches, "windows"), ("data", learner.batches, "starts")]


def collected(collector: Collector | None) -> int:
    """Agent steps so far."""
    return 0 if collector is None else collector.agent_steps


def measure(preset: str, work: Path, launched: float) -> dict[str, Any]:
    """One row; `launched` is the time at which this process was asked for."""
    config = config_of(preset, work)
    with peak_memory() as memory, prepared(config) as (learner, collector):
        cpu_seconds = (lambda: 0.0) if collector is None else collector.env.cpu_seconds
        if collector is not None:
            collector.start(learner.agent)
        learner.start()
        workers_cpu = cpu_seconds()
        row = {"preset": preset, "task": config.task.only or learner.agent.spec.label}
        row |= {"startup_s": time.time() - launched, "startup_cpu": time.process_time()}
        steps, start, start_cpu = collected(collector), time.perf_counter(), time.process_time()
        with timed([*data_places(learner, collector), *UPDATES]) as spent:
            metrics = run_epoch(learner, collector)
        row |= {"epoch_s": time.perf_counter() - start, "epoch_cpu": time.process_time() - start_cpu}
        row |= {"workers_cpu": cpu_seconds() - workers_cpu, "agent_steps": collected(collector) - steps}
    for part, own in spent.items():
        row |= {f"{part}_s": own.seconds, f"{part}_cpu": own.cpu_seconds}
    for unit in ("s", "cpu"):
        row[f"rest_{unit}"] = row[f"epoch_{unit}"] - sum(row[f"{part}_{unit}"] for part in spent)
    row |= {"model_updates": spent["model"].calls, **memory}
    losses = {f"loss_{name}": metrics[f"loss/{name}"] for name in LOSSES if f"loss/{name}" in metrics}
    if learner.nonfinite or not all(math.isfinite(loss) for loss in losses.values()):
        raise ArithmeticError(f"{preset}: {learner.nonfinite} updates were not finite; losses {losses}")
    return row | losses


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Peaks in MB, there when it ends: all pages and anonymous ones of this process, anonymous ones of its workers."""
    peaks = {"anonymous_mb": 0.0, "workers_mb": 0.0}
    ended = threading.Event()

    def watch() -> None:
        while True:
            peaks["anonymous_mb"] = max(peaks["anonymous_mb"], memory_mb("self", "RssAnon"))
            peaks["workers_mb"] = max(peaks["workers_mb"], sum(memory_mb(pid, "RssAnon") for pid in offspring("self")))
            if ended.wait(SAMPLE_SECONDS):
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        ended.set()
        watcher.join()
        peaks["peak_rss_mb"] = memory_mb("self", "VmHWM")


def offspring(process: str) -> list[str]:
    """Ids of all processes below this one."""
    try:
        files = list(Path(f"/proc/{process}/task").glob("*/children"))
        children = [pid for file in files for pid in file.read_text(encoding="ascii").split()]
    except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
        return []
    return [pid for child in children for pid in (child, *offspring(child))]


def memory_mb(process: str, figure: str) -> float:
    """A figure of /proc/PID/status; 0 for a process that has ended."""
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    lines = (line.split() for line in text.splitlines() if line.startswith(f"{figure}:"))
    return next((int(words[1]) * 1024 / MEGABYTE for words in lines), 0.0)


def rows_of(out: Path) -> list[dict[str, str]]:
    """What the file holds already."""
    if not out.exists():
        return []
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def append(out: Path, row: dict[str, Any]) -> None:
    """Add a row, under a header where the file is new."""
    new = not out.exists()
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="*", help="names; default: every 48M preset of the stages and phases")
    parser.add_argument("--out", type=Path, required=True, help="the table (CSV) that rows are appended to")
    parser.add_argument("--work", type=Path, help="keep checkpoints and datasets here (default: a temporary folder)")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes that measure, when they start
    done = {row["preset"] for row in rows_of(args.out)}
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        make_inputs(work)
        print(f"{'preset':26} {'task':14} {'s/epoch':>8} {'CPU-s':>8} {'RSS MB':>8} {'workers':>8}")
        for preset in args.presets or all_presets():
            if preset in done:
                continue
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                row = pool.submit(measure, preset, work, time.time()).result()
            append(args.out, row)
            sizes = f"{row['peak_rss_mb']:8.0f} {row['workers_mb']:8.0f}"
            print(f"{preset:26} {row['task']:14} {row['epoch_s']:8.1f} {row['epoch_cpu']:8.1f} {sizes}", flush=True)


if __name__ == "__main__":
    main()
