"""Train every arm of the tail-risk experiment, one after another, and summarise what they earned.

    python benchmarks/risk.py --out docs/tuning/risk.csv
    python benchmarks/risk.py --summarise docs/tuning/risk.csv
    python benchmarks/risk.py --references

Runs are the presets `risk-{obs,latent}-{residual,teacher,gaussian,genflow-k4,genflow-k8}` on each task. A
row is appended per run, and runs that the file has are not run again: start it anew to go on after a stop.
Seeds are outermost, so a stop leaves whole rounds of all arms. `reward` is what the final weights earn per
step, times 100, over the preset's evaluation episodes, whose seeds no training uses.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import product
from pathlib import Path

import numpy as np
import torch

from flowmbpo.envs.resolve import resolve
from flowmbpo.envs.tasks import task_info
from flowmbpo.envs.toy.risk import STRIDE
from flowmbpo.envs.toy.system import ToySystem
from flowmbpo.envs.toy.systems import toy_system
from flowmbpo.models.agent import build_meta_agent
from flowmbpo.parity.comparison import COMPARED
from flowmbpo.parity.flops import parameter_counts
from flowmbpo.presets.load import load_experiment
from flowmbpo.runs.train import train

TASKS = ("toy-rare-push", "toy-skew-push")
REPRESENTATIONS = ("obs", "latent")
MODELS = ("residual", "teacher", "gaussian", "genflow-k4", "genflow-k8")
# Mean reward per step x 100 of the earlier prototype, state = observation (5 to 10 seeds).
PROTOTYPE = {
    "toy-rare-push": {"residual": 23.6, "teacher": 27.5, "gaussian": 39.5, "genflow-k4": 41.0, "genflow-k8": 43.7},
    "toy-skew-push": {"residual": 28.7, "teacher": 28.8, "gaussian": 34.0, "genflow-k4": 35.6, "genflow-k8": 36.6},
}
RESAMPLES = 10_000
Figure = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Row:
    """One run: what it was, what it earned (reward per step x 100), training CPU seconds, model parameters."""

    task: str
    representation: str
    model: str
    seed: int
    reward: float
    cpu_s: float
    params: int

    @property
    def key(self) -> tuple[int, str, str, str]:
        """What names the run."""
        return self.seed, self.task, self.representation, self.model


def main() -> None:
    """Run what is missing, or print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/tuning/risk.csv"), help="CSV file [%(default)s]")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--representations", nargs="+", choices=REPRESENTATIONS, default=REPRESENTATIONS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10, 20)))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, for a pilot")
    parser.add_argument("--summarise", type=Path, metavar="CSV", help="print the tables of these rows and stop")
    parser.add_argument("--references", action="store_true", help="print what fixed policies earn and stop")
    chosen = parser.parse_args()
    if chosen.summarise is not None:
        print("\n".join(tables(read_rows(chosen.summarise))))
        return
    if chosen.references:
        print("\n".join(references(chosen.tasks)))
        return
    done = {row.key for row in read_rows(chosen.out)} if chosen.out.exists() else set()
    keys = list(product(chosen.seeds, chosen.tasks, chosen.representations, chosen.models))
    missing = [key for key in keys if key not in done]
    for number, key in enumerate(missing, 1):
        row = run(*key, chosen.set)
        append(chosen.out, row)
        print(f"{number}/{len(missing)} {row}", file=sys.stderr, flush=True)


def run(seed: int, task: str, representation: str, model: str, overrides: Sequence[str]) -> Row:
    """Train one arm in a folder that is thrown away."""
    config = load_experiment(f"risk-{representation}-{model}", overrides, task=task, seed=seed, track=())
    spec = resolve(config.task).spec
    counts = parameter_counts(build_meta_agent(config, spec))
    with tempfile.TemporaryDirectory() as folder:
        outcome = train(config, out=Path(folder) / "run", console=False)
    if outcome.final_return_mean is None:
        raise SystemExit("stopped; start again to go on")
    earned = 100.0 * outcome.final_return_mean / spec.tasks[0].episode_length
    params = sum(counts[part] for part in COMPARED)
    return Row(task, representation, model, seed, round(earned, 2), round(outcome.cpu_s, 1), params)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that `append` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row(
                task=row["task"],
                representation=row["representation"],
                model=row["model"],
                seed=int(row["seed"]),
                reward=float(row["reward"]),
                cpu_s=float(row["cpu_s"]),
                params=int(row["params"]),
            )
            for row in csv.DictReader(file)
        ]


def append(path: Path, row: Row) -> None:
    """Add one row, with a header where the file is new."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow([field.name for field in fields(Row)])
        writer.writerow(astuple(row))


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown: every arm's mean, worst quartile and spread with 95% intervals; then the paired differences."""
    yield "| task | state | model | seeds | mean | worst quartile | spread | prototype's mean | CPU s | parameters |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for task, state, model in product(TASKS, REPRESENTATIONS, MODELS):
        arm = [row for row in rows if (row.task, row.representation, row.model) == (task, state, model)]
        if not arm:
            continue
        rewards = np.array([row.reward for row in arm])
        figures = " | ".join(with_interval(rewards, figure) for figure in (mean, worst_quartile, spread))
        known = f"{PROTOTYPE[task][model]:.1f}" if state == "obs" else "-"
        cpu = float(np.median([row.cpu_s for row in arm]))
        yield f"| {task} | {state} | {model} | {len(arm)} | {figures} | {known} | {cpu:.0f} | {arm[0].params} |"
    yield ""
    yield "| task | state | genflow-k8 minus | seeds | paired difference of the mean | prototype's |"
    yield "|---|---|---|---|---|---|"
    for task, state, other in product(TASKS, REPRESENTATIONS, ("residual", "teacher", "gaussian", "genflow-k4")):
        difference = paired(rows, task, state, "genflow-k8", other)
        if len(difference):
            gap = PROTOTYPE[task]["genflow-k8"] - PROTOTYPE[task][other]
            known = f"{gap:+.1f}" if state == "obs" else "-"
            yield f"| {task} | {state} | {other} | {len(difference)} | {with_interval(difference, mean)} | {known} |"


def paired(rows: Sequence[Row], task: str, state: str, a: str, b: str) -> np.ndarray:
    """Differences a - b of the seeds that have both."""
    arms = {
        model: {
            r.seed: r.reward for r in rows if (r.task, r.representation, r.model) == (task, state, model)
        }
        for model in (a, b)
    }  # fmt: skip
    return np.array([arms[a][seed] - arms[b][seed] for seed in sorted(arms[a].keys() & arms[b].keys())])


def mean(rewards: np.ndarray) -> np.ndarray:
    """Over seeds, the last axis."""
    return np.asarray(rewards.mean(-1))


def worst_quartile(rewards: np.ndarray) -> np.ndarray:
    """Mean of the lowest quarter of the seeds, their number rounded up (3 of 10)."""
    lowest = -(-rewards.shape[-1] // 4)
    return np.asarray(np.sort(rewards, axis=-1)[..., :lowest].mean(-1))


def spread(rewards: np.ndarray) -> np.ndarray:
    """Standard deviation over seeds (n - 1); 0 for a single one."""
    return np.asarray(rewards.std(-1, ddof=min(1, rewards.shape[-1] - 1)))


def with_interval(rewards: np.ndarray, figure: Figure) -> str:
    """The figure and its 95% percentile-bootstrap interval over seeds (10,000 resamples, generator seed 0)."""
    draws = np.random.default_rng(0).choice(rewards, (RESAMPLES, len(rewards)))
    low, high = np.percentile(figure(draws), [2.5, 97.5])
    return f"{float(figure(rewards)):.1f} [{low:.1f}, {high:.1f}]"


def references(tasks: Sequence[str]) -> Iterator[str]:
    """What policies that learn nothing earn: uniform actions, and going to the best fixed distance.

    Start states and noise are the same for every policy; the distance is chosen on them, from a grid of .05.
    """
    yield "| task | random actions | best constant target |\n|---|---|---|"
    for name in tasks:
        system = toy_system(task_info(name))
        earned = [(earn(system, target), target) for target in np.arange(0.0, 1.01, 0.05).round(2).tolist()]
        best, at = max(earned)
        yield f"| {name} | {earn(system, None):.1f} | {best:.1f} at {at} |"


def earn(system: ToySystem, target: float | None, episodes: int = 4000) -> float:
    """Mean reward per step x 100 of going to `target` and staying there, or of uniform actions."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    state = torch.tensor([system.start(rng) for _ in range(episodes)], dtype=torch.float32)
    length, total = system.task.episode_length, torch.zeros(episodes)
    noise = torch.rand(length, episodes, system.noise_dim, generator=generator)
    for drawn in noise:
        if target is None:
            action = 2.0 * torch.rand(episodes, 1, generator=generator) - 1.0
        else:
            action = ((target - state) / STRIDE).clamp(-1.0, 1.0)
        state, reward = system.transition(state, action, drawn)
        total += reward
    return 100.0 * float(total.mean()) / length


if __name__ == "__main__":
    main()
