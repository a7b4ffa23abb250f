"""What a dataset holds, in numbers and pictures, and where published ones are to be had."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.errors import DataError
from flowmbpo.files import StagedFile
from flowmbpo_cli.tables import print_pairs, print_table, show

READ_EPISODES = 256  # at once
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def inspect(dataset: Dataset) -> dict[str, Any]:
    """What `data inspect --json` prints; reads all rows, a few hundred episodes at a time."""
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
        "tasks": [_task_figures(dataset, task) for task, record in enumerate(dataset.tasks) if record.episodes],
        "without_episodes": [record.name for record in dataset.tasks if not record.episodes],
        "source": dict(dataset.source),
    }


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


_SHOWN = ("set", "episodes", "transitions", "obs_dim", "action_dim", "files", "bytes", "fingerprint")
_RETURNS = ["return", "least", "25%", "50%", "75%", "most"]
_COLUMNS = ["task", "episodes", "transitions", "length", *_RETURNS, "reward", "obs", "action", "terminated"]


def show_dataset(document: dict[str, Any]) -> None:
    """The document of `inspect` for people."""
    print_pairs(document["path"], {key: document[key] for key in _SHOWN})
    rows = [
        [
            *(task[key] for key in ("name", "episodes", "transitions")),
            _span(task["length"]),
            task["return_mean"],
            *task["return_quantiles"],
            *(_span(task[key]) for key in ("reward", "obs", "action")),
            task["terminated"],
        ]
        for task in document["tasks"]
    ]
    print_table("tasks", _COLUMNS, rows)
    if document["without_episodes"]:
        print(f"Without episodes: {', '.join(document['without_episodes'])}")
    source = document["source"]
    if source.get("kind") == "collected":
        known = ("kind", "checkpoint")
        rows = [[policy.get("checkpoint", policy["kind"]), _details(policy, *known)] for policy in source["policies"]]
    else:
        rows = [[file["name"], _details(file, "name")] for file in source.get("files", [])]
    if rows:
        print_table("sources", ["source", "name", "details"], [[place, *row] for place, row in enumerate(rows)])


def _span(pair: list[float]) -> str:
    low, high = (show(value) for value in pair)
    return low if low == high else f"{low} to {high}"


def _details(record: Mapping[str, Any], *known: str) -> str:
    parts = []
    for key, value in record.items():
        if key not in known and value not in (None, False, 0.0):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            parts.append(f"{key} {text[:12] if 'sha256' in key else text}")
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
    with StagedFile(out) as staged:
        figure.savefig(staged, format="png")  # type: ignore[arg-type]  # it writes, which is all that is asked
        staged.commit()


_FIELDS = ("name", "kind", "page", "size", "layout", "command", "note")
_PUBLISHED = """
TD-MPC2 MT30 | dataset | https://www.tdmpc2.com/dataset
about 20 GB, 690,000 episodes | mt30/chunk_0.pt ... mt30/chunk_3.pt
flowmbpo data convert mt30 data/mt30 | 30 tasks of DMControl, 501 rows an episode

TD-MPC2 MT80 | dataset | https://www.tdmpc2.com/dataset
about 34 GB, 5,450,000 episodes | mt80/chunk_0.pt ... mt80/chunk_19.pt
flowmbpo data convert mt80 data/mt80
MT30's tasks and 50 of Meta-World (v2 physics; this project simulates v3), 101 rows an episode

PWM dflex data | dataset | https://huggingface.co/imgeorgiev/pwm/tree/main/dflex/data
see the page | one .pt per task
flowmbpo data convert FILE.pt data/dflex-ant --format pwm-dflex --task dflex-ant
read as the published recorder writes them; the files themselves could not be tried

MMBench demonstrations (Newt) | dataset | https://huggingface.co/datasets/nicklashansen/mmbench
see the page | <task>.pt in one folder
flowmbpo data convert mmbench data/mmbench --set mt30 | --task NAME reads one; without --set every file of the folder

TD-MPC2 checkpoints | checkpoint | https://huggingface.co/nicklashansen/tdmpc2
1M to 317M parameters | multitask/mt30-48M.pt, ...; single-task files in a folder per domain
flowmbpo checkpoint import mt30-48M.pt

PWM multi-task world models | checkpoint | https://huggingface.co/imgeorgiev/pwm/tree/main/multitask
48M parameters | one .pt per model
flowmbpo checkpoint import FILE.pt | TD-MPC2's format, trained with horizon 16

PWM dflex world models | checkpoint | https://huggingface.co/imgeorgiev/pwm/tree/main/dflex/pretrained
see the page | one .pt per task
flowmbpo checkpoint import FILE.pt | PWM's own format, with pickled statistics that are never run

Newt checkpoints | checkpoint | https://huggingface.co/nicklashansen/newt
S 2M, B 5M, L 20M, XL 80M parameters | soup-*.pt for all tasks, <task>.pt for one (B)
flowmbpo checkpoint import FILE.pt
"""
_ENTRIES = (re.split(r" \| |\n", entry) for entry in _PUBLISHED.strip().split("\n\n"))
PUBLISHED = [dict(zip_longest(_FIELDS, entry, fillvalue="")) for entry in _ENTRIES]
"""A download each: `page` is where it is, `layout` how its files lie, `command` what reads them here."""


def show_published(document: dict[str, Any]) -> None:
    """Where everything is, for people."""
    for entry in document["published"]:
        print_pairs(entry["name"], {key: value for key, value in entry.items() if key != "name" and value})
