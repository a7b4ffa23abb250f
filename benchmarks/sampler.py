"""How fast windows of a stored dataset come, what memory they take and how well they are mixed.

    python benchmarks/sampler.py            # a data set of some 1.5 GB in a temporary folder
    python benchmarks/sampler.py --quick    # some 300 MB

Episodes are made up at the widths and lengths of MT80: 30 tasks with their DMControl widths and 50 with 39
observations and 4 actions, 100 transitions each. Two memory limits: one that holds everything ("resident")
and one that holds a small part, so that groups must be read all the time ("swapped").

- windows/s: batches per second times their size, after the first batch; once with the data in the page cache.
- anonymous memory: what the process holds beyond what it held before the sampler, at its peak
  (RssAnon of /proc/self/status, read after every batch).
- distinct episodes: in a batch, against what uniform drawing from all windows would give on average.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.dataset.sampler import WindowSampler
from flowmbpo.data.dataset.writer import DatasetWriter
from flowmbpo.spec import EnvSpec, TaskInfo

BATCH, HORIZON, LENGTH = 256, 16, 100
DMCONTROL = (24, 24, 24, 17, 6, 6, 6, 3, 5, 5, 5, 5, 8, 9, 12, 12, 24, 15, 15, 24, 24, 17, 17, 17, 17, 15, 8, 8, 8, 3)


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    windows: float  # per second
    first: float  # seconds to the first batch
    memory: float  # MB
    distinct: float  # episodes in a batch


def make_spec() -> EnvSpec:
    """80 tasks of MT80's widths (the first observation says which episode a row is of)."""
    widths = [(obs, min(6, max(1, obs // 4))) for obs in DMCONTROL] + [(39, 4)] * 50
    tasks = [TaskInfo(f"task-{k:02d}", "toy", obs, action, LENGTH, 1, 0.95) for k, (obs, action) in enumerate(widths)]
    return EnvSpec(tuple(tasks), "mt80-widths")


def make_dataset(path: Path, spec: EnvSpec, episodes: int) -> Dataset:
    """`episodes` of each task: random walks, seeded."""
    rng = np.random.default_rng(0)
    with DatasetWriter.create(path, spec.label, spec.tasks, {"kind": "benchmark"}) as writer:
        for task, info in enumerate(spec.tasks):
            for first in range(0, episodes, 500):
                count = min(500, episodes - first)
                obs = rng.standard_normal((count, LENGTH + 1, info.obs_dim), np.float32).cumsum(1)
                obs[..., 0] = np.arange(first, first + count)[:, None]
                action = rng.uniform(-1, 1, (count, LENGTH, info.action_dim)).astype(np.float32)
                writer.add_many(task, obs, action, rng.random((count, LENGTH), np.float32))
        return writer.finish()


def anonymous_mb() -> float:
    """This process's anonymous memory now."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split("RssAnon:")[1].split()[0]) / 1024


def measure(path: Path, spec: EnvSpec, memory_mb: int, threads: int, seconds: float, only: int | None) -> Result:
    """Draw batches for some seconds."""
    torch.set_num_threads(1)
    dataset = Dataset.open(path)
    before = peak = anonymous_mb()
    begin = time.perf_counter()
    with WindowSampler(
        dataset, spec, horizon=HORIZON, batch_size=BATCH, seed=0, memory_mb=memory_mb, threads=threads, only=only
    ) as sampler:
        sampler.next()
        start = time.perf_counter()
        batches, distinct = 0, 0
        while time.perf_counter() - start < seconds:
            batch = sampler.next()
            peak = max(peak, anonymous_mb())
            distinct += len(torch.unique(torch.stack((batch.task.float(), batch.obs[0, :, 0])), dim=1).T)
            batches += 1
        elapsed = time.perf_counter() - start
    return Result(batches * BATCH / elapsed, start - begin, peak - before, distinct / batches)


def ideal_distinct(tasks: int, episodes: int) -> float:
    """Expected distinct episodes in a batch drawn uniformly, with replacement, equally often per task."""
    per_task = BATCH / tasks
    return float(tasks * episodes * (1 - (1 - 1 / episodes) ** per_task))


@contextmanager
def folder(given: Path | None) -> Iterator[Path]:
    """Where the data set goes."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary) / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small data set and short measurements")
    parser.add_argument("--data", type=Path, help="keep the data set here (default: a temporary folder)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    episodes, seconds = (300, 2.0) if args.quick else (1500, 10.0)
    spec = make_spec()
    with folder(args.data) as path:
        dataset = make_dataset(path, spec, episodes)
        size = sum(record.size for record in dataset.manifest.files) / 2**20
        print(f"{dataset.episodes} episodes, {dataset.transitions} transitions, {len(dataset.manifest.files)} files")
        print(f"{size:.0f} MB on disk; batch {BATCH}, horizon {HORIZON}; {os.cpu_count()} cores")
        columns = ("data", "memory_mb", "threads", "windows/s", "first s", "anon MB", "distinct episodes (uniform)")
        print("{:<20} {:>9} {:>7} {:>10} {:>8} {:>8} {}".format(*columns))
        limits: list[tuple[str, int, int | None]] = [("all, resident", 4096, None), ("all, swapped", 200, None)]
        limits += [("one task, swapped", size, 40) for size in (2, 4, 8, 16)] + [("one task, resident", 64, 40)]
        spawn = multiprocessing.get_context("spawn")
        for name, memory_mb, only in limits:
            tasks = len(spec.tasks) if only is None else 1
            for threads in (1, 2):
                with spawn.Pool(1) as fresh:  # a process of its own: its memory is what this measurement took
                    found = fresh.apply(measure, (path, spec, memory_mb, threads, seconds, only))
                print(
                    f"{name:<20} {memory_mb:>9} {threads:>7} {found.windows:>10.0f} {found.first:>8.2f} "
                    f"{found.memory:>8.0f} {found.distinct:.1f} ({ideal_distinct(tasks, episodes):.1f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
