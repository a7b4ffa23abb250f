"""What a dataset holds, in numbers and pictures, and where published ones are to be had."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.errors import DataError
from flowmbpo.files import write_bytes_atomic

READ_EPISODES = 256  # at once
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def inspect(dataset: Dataset) -> list[dict[str, Any]]:
    """Figures of every task that has episodes; reads all rows, a few hundred episodes at a time."""
    return [_task_figures(dataset, task) for task, record in enumerate(dataset.tasks) if record.episodes]


def _task_figures(dataset: Dataset, task: int) -> dict[str, Any]:
    record = dataset.tasks[task]
    ranges = {name: [np.inf, -np.inf] for name in ("reward", "obs", "action")}
    terminated = 0
    for begin in range(0, record.episodes, READ_EPISODES):
        block = dataset.read_episodes(task, range(begin, min(begin + READ_EPISODES, record.episodes)))
        left = np.ones(len(block.reward), dtype=np.bool_)  # the last row of an episode has no transition
        left[block.start + block.length] = False
        for name, values in (("reward", block.reward[left]), ("obs", block.obs), ("action", block.action[left])):
            low, high = ranges[name]
            ranges[name] = [min(low, float(values.min())), max(high, float(values.max()))]
        terminated += int(block.terminated.sum())
    table = dataset.episode_table(task)
    returns, lengths = table["return"], table["length"]
    return {
        "name": record.name,
        "episodes": len(table),
        "transitions": int(lengths.sum()),
        "length": [int(lengths.min()), int(lengths.max())],
        "return_mean": float(returns.mean()),
        "return_quantiles": [float(value) for value in np.quantile(returns, _QUANTILES)],
        **ranges,
        "terminated": terminated,
    }


def document(dataset: Dataset, figures: list[dict[str, Any]]) -> dict[str, Any]:
    """What `data inspect --json` prints."""
    return {
        "path": str(dataset.path),
        "set": dataset.set_name,
        "tasks_of_the_set": len(dataset.tasks),
        "obs_dim": dataset.obs_dim,
        "action_dim": dataset.action_dim,
        "episodes": dataset.episodes,
        "transitions": dataset.transitions,
        "files": len(dataset.manifest.files),
        "bytes": sum(record.size for record in dataset.manifest.files),
        "fingerprint": dataset.fingerprint,
        "tasks": figures,
        "without_episodes": [record.name for record in dataset.tasks if not record.episodes],
        "source": dict(dataset.source),
    }


def source_rows(source: Mapping[str, Any]) -> list[list[Any]]:
    """One row for every policy or file that the data come from: number, what, details."""
    if source.get("kind") == "collected":
        return [
            [place, policy.get("checkpoint", policy["kind"]), _details(policy, ("kind", "checkpoint"))]
            for place, policy in enumerate(source["policies"])
        ]
    files = source.get("files", [])
    return [[place, file["name"], _details(file, ("name",))] for place, file in enumerate(files)]


def _details(record: Mapping[str, Any], known: tuple[str, ...]) -> str:
    parts = []
    for key, value in record.items():
        if key not in known and value not in (None, False, 0.0):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            parts.append(f"{key} {shown[:12] if 'sha256' in key else shown}")
    return "; ".join(parts)


def draw(dataset: Dataset, figures: list[dict[str, Any]], title: str, out: Path) -> None:
    """A picture as PNG: one row per task with its returns and lengths, and at the end all rewards' ranges.

    Raises DataError where no task has episodes, StorageError where the disk refuses.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not figures:
        raise DataError("--plot: the dataset has no episodes to draw")
    rows = len(figures)
    figure = Figure(figsize=(11.0, 1.5 + 1.25 * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    grid = figure.add_gridspec(rows, 3, width_ratios=[2.0, 1.2, 1.6])
    for row, task in enumerate(figures):
        table = dataset.episode_table(dataset.task_id(task["name"]))
        returns = figure.add_subplot(grid[row, 0])
        returns.hist(table["return"], bins=40, color="#4477aa")
        returns.set_ylabel(task["name"], rotation=0, ha="right", va="center", fontsize=8)
        lengths = figure.add_subplot(grid[row, 1])
        lengths.hist(table["length"], bins=20, color="#228833")
        lengths.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        for axes, name in ((returns, "return of an episode"), (lengths, "transitions of an episode")):
            axes.tick_params(labelsize=7)
            axes.set_yticks([])
            if row == 0:
                axes.set_title(f"{name}: how many", fontsize=9, loc="left")
    ranges = figure.add_subplot(grid[:, 2])
    places = np.arange(rows)
    low, high = (np.array([task["reward"][end] for task in figures]) for end in (0, 1))
    ranges.barh(places, high - low, left=low, height=0.5, color="#aa8800", alpha=0.6)
    means = [task["return_mean"] * task["episodes"] / task["transitions"] for task in figures]
    ranges.plot(means, places, "k|", markersize=10, label="mean")
    ranges.set_yticks(places, [task["name"] for task in figures], fontsize=7)
    ranges.set_ylim(rows - 0.5, -0.5)
    ranges.tick_params(axis="x", labelsize=7)
    ranges.set_title("reward of a step: least, mean, most", fontsize=9, loc="left")
    data = io.BytesIO()
    figure.savefig(data, format="png")
    write_bytes_atomic(out, data.getvalue())


@dataclass(frozen=True)
class Published:
    """One download: `page` is where it is, `layout` how its files lie, `command` what reads them here."""

    name: str
    kind: str
    page: str
    size: str
    layout: str
    command: str
    note: str = ""


_TDMPC2 = "https://www.tdmpc2.com"
_HUB = "https://huggingface.co"
PUBLISHED = (
    Published(
        name="TD-MPC2 MT30",
        kind="dataset",
        page=f"{_TDMPC2}/dataset",
        size="about 20 GB, 690,000 episodes",
        layout="mt30/chunk_0.pt ... mt30/chunk_3.pt",
        command="flowmbpo data convert mt30 data/mt30",
        note="30 tasks of DMControl, 501 rows an episode",
    ),
    Published(
        name="TD-MPC2 MT80",
        kind="dataset",
        page=f"{_TDMPC2}/dataset",
        size="about 34 GB, 5,450,000 episodes",
        layout="mt80/chunk_0.pt ... mt80/chunk_19.pt",
        command="flowmbpo data convert mt80 data/mt80",
        note="MT30's tasks and 50 of Meta-World (v2 physics; this project simulates v3), 101 rows an episode",
    ),
    Published(
        name="PWM dflex data",
        kind="dataset",
        page=f"{_HUB}/imgeorgiev/pwm/tree/main/dflex/data",
        size="see the page",
        layout="one .pt per task",
        command="flowmbpo data convert FILE.pt data/dflex-ant --format pwm-dflex --task dflex-ant",
        note="read as the published recorder writes them; the files themselves could not be tried",
    ),
    Published(
        name="MMBench demonstrations (Newt)",
        kind="dataset",
        page=f"{_HUB}/datasets/nicklashansen/mmbench",
        size="see the page",
        layout="<task>.pt in one folder",
        command="flowmbpo data convert mmbench data/mmbench --set mt30",
        note="--task NAME reads one; without --set every file of the folder",
    ),
    Published(
        name="TD-MPC2 checkpoints",
        kind="checkpoint",
        page=f"{_HUB}/nicklashansen/tdmpc2",
        size="1M to 317M parameters",
        layout="multitask/mt30-48M.pt, ...; single-task files in a folder per domain",
        command="flowmbpo checkpoint import mt30-48M.pt",
    ),
    Published(
        name="PWM multi-task world models",
        kind="checkpoint",
        page=f"{_HUB}/imgeorgiev/pwm/tree/main/multitask",
        size="48M parameters",
        layout="one .pt per model",
        command="flowmbpo checkpoint import FILE.pt",
        note="TD-MPC2's format, trained with horizon 16",
    ),
    Published(
        name="PWM dflex world models",
        kind="checkpoint",
        page=f"{_HUB}/imgeorgiev/pwm/tree/main/dflex/pretrained",
        size="see the page",
        layout="one .pt per task",
        command="flowmbpo checkpoint import FILE.pt",
        note="PWM's own format, with pickled statistics that are never run",
    ),
    Published(
        name="Newt checkpoints",
        kind="checkpoint",
        page=f"{_HUB}/nicklashansen/newt",
        size="S 2M, B 5M, L 20M, XL 80M parameters",
        layout="soup-*.pt for all tasks, <task>.pt for one (B)",
        command="flowmbpo checkpoint import FILE.pt",
    ),
)
