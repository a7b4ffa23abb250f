"""Summarise trials as a Markdown table.

    python benchmarks/summarise.py docs/tuning/cartpole-final.csv

One row per preset and overrides: seeds, median return, mean with its 95% percentile-bootstrap
interval (10,000 resamples of the seeds, generator seed 0), range, and median CPU seconds. A failed
run stays in with a return of 0.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

RESAMPLES = 10_000


def main() -> None:
    """Read the files and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", type=Path, nargs="+", help="CSV files of benchmarks/trials.py")
    groups: dict[str, list[dict[str, str]]] = {}
    for path in parser.parse_args().trials:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                groups.setdefault(f"`{row['preset']}` {row['overrides']}".strip(), []).append(row)
    print("| run | seeds | median | mean [95% interval] | min .. max | CPU seconds |")
    print("|---|---|---|---|---|---|")
    for name, rows in groups.items():
        returns = np.array([float(row["return_mean"] or 0.0) for row in rows])
        low, high = mean_interval(returns)
        cpu = np.median([float(row["cpu_s"] or "nan") for row in rows])
        print(
            f"| {name} | {len(returns)} | {np.median(returns):.0f} | {returns.mean():.0f} [{low:.0f}, {high:.0f}] "
            f"| {returns.min():.0f} .. {returns.max():.0f} | {cpu:.0f} |"
        )


def mean_interval(returns: np.ndarray) -> tuple[float, float]:
    """95% percentile bootstrap of the mean over seeds."""
    draws = np.random.default_rng(0).choice(returns, (RESAMPLES, len(returns)))
    low, high = np.percentile(draws.mean(1), [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    main()
