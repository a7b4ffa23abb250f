"""The learning curve is drawn from what was logged."""

from __future__ import annotations

import math
from pathlib import Path

import imageio.v3 as imageio
import pytest

from flowmbpo.errors import DataError, StorageError
from flowmbpo.tracking.plots import plot_learning_curve
from flowmbpo.tracking.sink import JsonlSink


def metrics(path: Path, evaluate: bool = True) -> Path:
    sink = JsonlSink(path)
    for epoch in range(1, 41):
        row = {"epoch": epoch, "agent_steps": 400 * epoch, "train/return_mean": 100 * (1 - math.exp(-epoch / 9))}
        row |= {f"loss/{part}": 1 / epoch for part in ("dynamics", "reward", "critic")}
        row |= {"loss/actor": -epoch / 40, "grad_norm/actor": math.nan if epoch == 5 else 0.5 / epoch}
        if evaluate and epoch % 10 == 0:
            row |= {"eval/return_mean": 2.5 * epoch, "eval/return_std": 8.0}
        sink.log(row)
    sink.close("done")
    return path


def test_curve_is_a_png_of_readable_size(tmp_path: Path) -> None:
    out = plot_learning_curve(metrics(tmp_path / "metrics.jsonl"), tmp_path / "curve.png")
    picture = imageio.imread(out)
    assert picture.shape[0] > 800 and picture.shape[1] > 1000
    assert picture.std() > 5, "the picture is blank"


def test_run_without_an_evaluation_is_refused(tmp_path: Path) -> None:
    path = metrics(tmp_path / "metrics.jsonl", evaluate=False)
    with pytest.raises(DataError, match=r"holds no evaluation yet.*evaluation\.every"):
        plot_learning_curve(path, tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


def test_unwritable_target_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(StorageError, match=r"absent/curve\.png: cannot be written.*folder exists"):
        plot_learning_curve(path, tmp_path / "absent" / "curve.png")
