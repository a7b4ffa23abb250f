"""The learning curve of one run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from flowmbpo.errors import DataError
from flowmbpo.files import StagedFile
from flowmbpo.tracking.sink import PARTS, read_rows

_COLOURS = {"dynamics": "#4477aa", "model": "#4477aa", "reward": "#228833", "actor": "#ee6677", "critic": "#aa8800"}


def plot_learning_curve(metrics_jsonl: Path, out: Path) -> Path:
    """Draw real return (band: one standard deviation), losses and gradient norms over agent steps.

    `out` becomes a PNG. Raises DataError without a single evaluation, StorageError when the disk refuses.
    """
    rows = read_rows(metrics_jsonl)
    steps, returns = _series(rows, "eval/return_mean")
    if not steps.size:
        raise DataError(
            f"{metrics_jsonl}: holds no evaluation yet, so there is no learning curve to draw. Train further, "
            "or set evaluation.every so that the run is evaluated."
        )
    figure = Figure(figsize=(9.0, 8.0), layout="constrained")
    FigureCanvasAgg(figure)
    top, losses, norms = figure.subplots(3, 1, sharex=True, height_ratios=[2, 1, 1])
    _draw_returns(top, rows, steps, returns)
    _draw_lines(losses, rows, "loss", "symlog", linthresh=1e-3)
    _draw_lines(norms, rows, "grad_norm", "log")
    norms.set_xlabel("agent steps")
    norms.xaxis.set_major_formatter(EngFormatter(sep=""))
    top.set_title(" / ".join(metrics_jsonl.absolute().parent.parts[-3:]), loc="left", fontsize=11)  # task, config, seed
    with StagedFile(out) as staged:
        figure.savefig(staged, format="png", dpi=130)  # type: ignore[arg-type]
        staged.commit()
    return out


def _series(rows: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Agent steps and values of the rows that hold a finite `key`."""
    pairs = [(row["agent_steps"], row[key]) for row in rows if row.get(key) is not None and "agent_steps" in row]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _draw_returns(axes: Axes, rows: Sequence[dict[str, Any]], steps: np.ndarray, returns: np.ndarray) -> None:
    train_steps, train = _series(rows, "train/return_mean")
    axes.plot(train_steps, train, color="#bbbbbb", linewidth=1.0, label="training episodes")
    axes.plot(steps, returns, color="#4477aa", linewidth=2.0, marker="o", markersize=3.5, label="evaluation")
    spread_steps, spread = _series(rows, "eval/return_std")
    if np.array_equal(spread_steps, steps):
        axes.fill_between(steps, returns - spread, returns + spread, color="#4477aa", alpha=0.2, linewidth=0)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    _tidy(axes, "real return")


def _draw_lines(axes: Axes, rows: Sequence[dict[str, Any]], group: str, scale: str, **options: float) -> None:
    for part in PARTS[group]:
        steps, values = _series(rows, f"{group}/{part}")
        if steps.size:
            axes.plot(steps, values, color=_COLOURS[part], linewidth=1.0, label=part)
    if axes.lines:
        axes.set_yscale(scale, **options)
        axes.legend(loc="upper right", frameon=False, fontsize=8, ncols=len(PARTS[group]))
    _tidy(axes, group.replace("grad_norm", "gradient norm"))


def _tidy(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
