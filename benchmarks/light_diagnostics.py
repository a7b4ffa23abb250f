"""What the light diagnostics cost a run: CPU seconds of theirs over CPU seconds of the training between two of them.

    OMP_NUM_THREADS=1 python benchmarks/light_diagnostics.py
    OMP_NUM_THREADS=1 python benchmarks/light_diagnostics.py --presets phase1-baseline --epochs 3 --measurements 3

In one process a run is trained in blocks of `--epochs` epochs, and measured once after each block, as a run
does every `diagnostics.every` epochs. The share is that of the steady state: the median measurement over `every`
times the mean epoch, environment and optimiser steps included, random episodes, model-only updates and evaluations
left out (they make the share of a whole run smaller). CPU time, for it hardly depends on what else the machine does.
One block comes first and is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from flowmbpo.diagnostics import registry
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.envs.resolve import resolve
from flowmbpo.presets.load import load_experiment
from flowmbpo.runs.start import begin, resolve_device
from flowmbpo.runs.subjects import SelfDiagnosis
from flowmbpo.runs.train import assembled, run_epoch

DEFAULT_PRESETS = ("quickstart", "mini-cartpole-fullflow", "mini-ant-baseline", "mini-ant-fullflow")
LIMIT = 0.03


def measure(preset: str, epochs: int, measurements: int, device: str) -> dict[str, Any]:
    """Figures of one preset."""
    config = load_experiment(preset, ["training.warmup_model_updates=20", "training.random_episodes=1"])
    task, target = resolve(config.task), resolve_device(device)
    torch.set_num_threads(1)
    start = begin(config, task, None)
    with tempfile.TemporaryDirectory() as folder, assembled(start, target, Path(folder)) as (learner, collector):
        assert collector is not None
        diagnosis = SelfDiagnosis(config, learner)
        epoch_s, light_s = [], []
        for block in range(measurements + 1):
            began = time.process_time() + collector.env.cpu_seconds()
            for _ in range(epochs):
                run_epoch(learner, collector)
            trained = time.process_time() + collector.env.cpu_seconds() - began
            began = time.process_time()
            diagnosis.measure()
            if block:
                epoch_s.append(trained / epochs)
                light_s.append(time.process_time() - began)
        parts = _parts(diagnosis)
    every = config.diagnostics.every
    epoch, cost = statistics.mean(epoch_s), statistics.median(light_s)
    return {
        "preset": preset,
        "every": every,
        "epoch_cpu_s": epoch,
        "light_cpu_s": cost,
        "light_range_s": [min(light_s), max(light_s)],
        "parts_cpu_s": parts,
        "share": cost / (every * epoch),
        "times_in_run": config.training.epochs // every,
        "findings": diagnosis.findings,
    }


def _parts(diagnosis: SelfDiagnosis) -> dict[str, float]:
    """CPU seconds of each light diagnostic, the median of three."""
    functions = {
        "esnr": registry.light_esnr,
        "jacobians": registry.light_jacobians,
        "rollout": registry.light_rollout,
        "health": registry.light_health,
    }
    subject, effort = diagnosis.subject(), Effort.light(diagnosis.config.diagnostics)
    found = {}
    for name, function in functions.items():
        times = []
        for _ in range(3):
            began = time.process_time()
            function(subject, effort)
            times.append(time.process_time() - began)
        found[name] = statistics.median(times)
    return found


def main() -> int:
    """Print one line per preset; 1 where a share exceeds the limit."""
    options = _options()
    rows = []
    for preset in options.presets:
        row = measure(preset, options.epochs, options.measurements, options.device)
        rows.append(row)
        parts = ", ".join(f"{name} {1e3 * value:.0f}" for name, value in row["parts_cpu_s"].items())
        print(
            f"{preset}: {1e3 * row['light_cpu_s']:.0f} ms ({parts}) every {row['every']} epochs of "
            f"{1e3 * row['epoch_cpu_s']:.0f} ms: {100 * row['share']:.2f}% (limit {100 * LIMIT:g}%), "
            f"{row['times_in_run']} times in the run",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return int(any(row["share"] > LIMIT for row in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=DEFAULT_PRESETS, metavar="NAME")
    parser.add_argument("--epochs", type=int, default=10, help="in a block")
    parser.add_argument("--measurements", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
