"""Golden runs and the table of resolved presets: what a change that moves code must leave bit-equal.

    python tests/golden/record.py runs             # record tests/golden/runs.json
    python tests/golden/record.py runs --check     # run again, compare, name what differs (about 4 CPU minutes)
    python tests/golden/record.py runs --only mini-cartpole-mlp --check
    python tests/golden/record.py presets [--check]

Every run is small and goes through the command line, so that nothing here depends on how the code is laid out. A run is
its final weights (SHA-256 over names and bytes) and its `metrics.jsonl` without times and memory. Bits depend on the
processor and on torch: the file names both, and a check elsewhere is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RUNS, PRESETS = HERE / "runs.json", HERE / "presets.json"
UNREPEATABLE = ("wall_s", "cpu_s", "speed/", "memory/", "diagnostics/share", "diagnostics/seconds")

Commands = list[list[str]]


def settings(**keys: object) -> list[str]:
    """`--set` options; `__` stands for the dot of a key."""
    return [part for key, value in keys.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]


TINY = settings(training__warmup_model_updates=8, evaluation__every=3, evaluation__episodes=2, diagnostics__every=4)
STAGE = settings(training__warmup_model_updates=4, evaluation__every=2, evaluation__episodes=3, diagnostics__every=3)


def train(preset: str, out: str, *options: str, epochs: int = 4, small: list[str] = TINY) -> list[str]:
    """One training."""
    return [
        "train",
        "--preset",
        preset,
        "--out",
        out,
        "--seed",
        "3",
        *settings(training__epochs=epochs),
        *small,
        *options,
    ]


def definitions() -> dict[str, Commands]:
    """The golden runs: names, and the commands of each. The last command's `--out` is what is hashed."""
    runs = {"quickstart": [train("quickstart", "run")]}
    runs["resumed"] = [
        train("quickstart", "run", epochs=2),
        train("quickstart", "run", "--resume", epochs=5),
    ]
    for kind in ("mlp", "residual", "gaussian", "flow", "genflow", "neuralode", "fullflow"):
        runs[f"mini-cartpole-{kind}"] = [train(f"mini-cartpole-{kind}", "run")]
    runs["dmc"] = [
        train(
            "dmc-latent-walker-stand-fullflow",
            "run",
            *settings(training__random_episodes=0, training__warmup_model_updates=0),
            epochs=8,
        )
    ]
    runs["ant"] = [train("mini-ant-residual", "run", epochs=2)]
    runs["teacher-two-hot"] = [
        train("quickstart", "run", *settings(model__dynamics__source="teacher", model__reward__kind="two_hot"))
    ]
    collect = [
        "data",
        "collect",
        "data",
        "--set",
        "mini3",
        "--policy",
        "random",
        "--policy",
        "noise",
        "--episodes",
        "2",
    ]
    offline = ["pretrain", "--data", "data", "--seed", "3", *STAGE, *settings(training__epochs=3)]
    offline += settings(training__warmup_model_updates=0)
    runs["stage-a"] = [collect, [*offline, "--preset", "mini3-a-fullflow", "--policy", "--out", "run"]]
    runs["a-b-c"] = [
        collect,
        [*offline, "--preset", "mini3-a-residual", "--out", "a"],
        ["finetune", "--preset", "mini3-b-flowwm", "--from", "a", "--data", "data", "--out", "b", "--seed", "3",
         *settings(training__epochs=2, initial__distill_updates=6), *STAGE],
        ["specialize", "--preset", "mini3-c-flowwm", "--from", "b", "--task", "walker-stand", "--out", "run",
         "--seed", "3", *settings(training__epochs=2), *STAGE],
    ]  # fmt: skip
    return runs


def weights_hash(checkpoint: Path) -> str:
    """Of the agent's tensors, by name."""
    import torch

    digest = hashlib.sha256()
    agent = torch.load(checkpoint, map_location="cpu", weights_only=True)["agent"]
    for name, value in sorted(agent.items()):
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            digest.update(value.contiguous().numpy().tobytes())
        else:
            digest.update(json.dumps(value, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:24]


def metrics_hash(metrics: Path) -> str:
    """Of every row, without times and memory."""
    rows = [
        {key: value for key, value in json.loads(line).items() if not key.startswith(UNREPEATABLE)}
        for line in metrics.read_text(encoding="utf-8").splitlines()
    ]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:24]


def record_run(name: str, commands: Commands, kept: Path | None = None) -> dict[str, str]:
    """Run the commands in an empty folder (or in `kept`/name, which stays); the hashes of what they leave."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if kept is None else kept / name
        folder.mkdir(parents=True, exist_ok=True)
        for command in commands:
            done = subprocess.run(
                [sys.executable, "-m", "flowmbpo_cli", *command], cwd=folder, env=env, capture_output=True, text=True
            )
            if done.returncode != 0:
                raise SystemExit(f"{name}: {' '.join(command)} exits with {done.returncode}:\n{done.stderr[-3000:]}")
        run = folder / "run"
        return {
            "weights": weights_hash(run / "checkpoints" / "latest.pt"),
            "metrics": metrics_hash(run / "metrics.jsonl"),
        }


def machine() -> dict[str, str]:
    """What the bits depend on."""
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model, family = (
        next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
        for key in ("model name", "cpu family")
    )
    return {
        "processor": f"{platform.machine()} {model} family {family} {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
    }


def resolved_presets() -> dict[str, str]:
    """Every name, controls included, with a hash of the configuration it resolves to."""
    from flowmbpo.presets.load import all_presets

    return {config.name: hash_config(config.model_dump(mode="json")) for config in all_presets()}


def hash_config(config: dict[str, Any]) -> str:
    """A short hash of a resolved configuration, defaults included."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """A line per entry that differs."""
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in sorted(old | new) if old.get(key) != new.get(key)]


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("runs", "presets"))
    parser.add_argument("--check", action="store_true", help="compare with what is recorded, write nothing")
    parser.add_argument("--only", nargs="*", help="these runs")
    parser.add_argument("--keep", type=Path, help="leave the runs in this folder")
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    if asked.what == "presets":
        old = json.loads(PRESETS.read_text()) if PRESETS.exists() else {}
        new, file = resolved_presets(), PRESETS
    else:
        stored = json.loads(RUNS.read_text()) if RUNS.exists() else {"machine": machine(), "runs": {}}
        if asked.check and stored["machine"] != machine():
            raise SystemExit(f"recorded on {stored['machine']}, this is {machine()}: the bits cannot be compared")
        chosen = {name: cmds for name, cmds in definitions().items() if not asked.only or name in asked.only}
        with ThreadPoolExecutor(asked.jobs) as pool:
            results = pool.map(lambda item: record_run(*item, asked.keep), chosen.items())
        found = dict(zip(chosen, results, strict=True))
        old = {name: stored["runs"].get(name) for name in found} if asked.check else stored["runs"]
        new, file = found, RUNS
    changed = differences(old, new)
    print("\n".join(changed) if changed else f"all {len(new)} equal")
    if asked.check:
        sys.exit(1 if changed else 0)
    document = new if asked.what == "presets" else {"machine": machine(), "runs": old | new}
    file.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
