"""Run a list of training trials and keep one row of figures per run.

    python benchmarks/trials.py docs/tuning/cartpole-flow-loss.yaml --jobs 2

The trials file is a YAML list of `{preset: NAME, set: [key=value, ...], seeds: [0, 1, ...]}`. Every
run is a process of its own with one thread; its row is appended to the CSV file of the same name
(`--out` names another), and rows that are already there are not run again, but for those
that somebody stopped. `curve` holds the real
evaluations of the run as `agent_steps:return_mean` pairs; `return_*` are the final evaluation's.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import yaml

COLUMNS = (
    "preset", "overrides", "seed", "status", "agent_steps", "return_mean", "return_std", "episodes", "cpu_s", "wall_s",
    "nonfinite", "curve",
)  # fmt: skip


def main() -> None:
    """Parse the command line and run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", type=Path)
    parser.add_argument("--out", type=Path, help="CSV file [default: the trials file's name with .csv]")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    arguments = parser.parse_args()
    out = arguments.out or arguments.trials.with_suffix(".csv")
    done = finished(out)
    runs = [run for run in expand(arguments.trials) if run not in done]
    print(f"{len(runs)} runs to do, {len(done)} done already", file=sys.stderr)
    lock = Lock()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(run_trial, runs):
            append(out, row, lock)
            print({key: value for key, value in row.items() if key != "curve"}, file=sys.stderr, flush=True)


def expand(trials: Path) -> list[tuple[str, str, int]]:
    """One (preset, overrides, seed) per run, seeds outermost so that an early stop leaves whole rounds."""
    entries = yaml.safe_load(trials.read_text(encoding="utf-8"))
    runs = [(seed, entry["preset"], " ".join(entry.get("set", []))) for entry in entries for seed in entry["seeds"]]
    runs.sort(key=lambda run: run[0])
    return [(preset, overrides, seed) for seed, preset, overrides in runs]


def finished(out: Path) -> set[tuple[str, str, int]]:
    """The runs that `out` already has to their end; those that somebody stopped are run again."""
    if not out.exists():
        return set()
    with out.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] != "stopped"]
    return {(row["preset"], row["overrides"], int(row["seed"])) for row in rows}


def run_trial(run: tuple[str, str, int]) -> dict[str, Any]:
    """Train once in a fresh folder that is thrown away; a failed run is a row too."""
    preset, overrides, seed = run
    command = [sys.executable, "-m", "flowmbpo_cli", "train", "--preset", preset, "--seed", str(seed), "--json"]
    for override in overrides.split():
        command += ["--set", override]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        result = subprocess.run(
            [*command, "--out", str(run_dir)], capture_output=True, text=True, env=environment, check=False
        )
        try:
            outcome = json.loads(result.stdout)
        except json.JSONDecodeError:
            outcome = {"error": {"message": result.stderr[-500:]}}
        curve = read_curve(run_dir / "metrics.jsonl")
    return {
        "preset": preset,
        "overrides": overrides,
        "seed": seed,
        "status": outcome.get("status", f"failed: {outcome.get('error', {}).get('message', '')}"),
        "agent_steps": outcome.get("agent_steps", ""),
        "return_mean": rounded(outcome.get("final_return_mean")),
        "return_std": rounded(outcome.get("final_return_std")),
        "episodes": outcome.get("eval_episodes", ""),
        "cpu_s": rounded(outcome.get("cpu_s")),
        "wall_s": rounded(outcome.get("wall_s")),
        "nonfinite": outcome.get("nonfinite", ""),
        "curve": " ".join(curve),
    }


def read_curve(metrics: Path) -> list[str]:
    """`agent_steps:return` of every evaluation in a metrics file."""
    if not metrics.exists():
        return []
    rows = (json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines())
    return [f"{row['agent_steps']}:{row['eval/return_mean']:.1f}" for row in rows if "eval/return_mean" in row]


def rounded(value: float | None) -> str:
    """One decimal, or nothing."""
    return "" if value is None else f"{value:.1f}"


def append(out: Path, row: dict[str, Any], lock: Lock) -> None:
    """Add one row, with a header where the file is new."""
    with lock:
        new = not out.exists()
        with out.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    main()
