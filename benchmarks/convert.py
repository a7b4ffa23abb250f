"""What `flowmbpo data convert` costs: megabytes of input a second, and anonymous memory, on a set of any size.

    python benchmarks/convert.py --gigabytes 2
    python benchmarks/convert.py --gigabytes 20 --chunk-gigabytes 5 --out out/convert.json

Makes MT30-shaped chunks one at a time (a process of its own saves a real TensorDict of random numbers, which no
compression shortens: the worst case), converts each with the code that the command runs, and deletes it, so that the
disk holds one chunk beside the growing dataset. Making chunks is left out of all figures. Chunks are read right after
they were written, mostly from the page cache. Every episode carries its number in its first observation; at the end
each must be there exactly once, under its task and its id.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from flowmbpo.data.convert.conversion import convert
from flowmbpo.data.convert.source import set_tasks
from flowmbpo.data.convert.tdmpc2 import TDMPC2Source
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.foreign import Archive

ROWS, OBS, ACTION = 501, 24, 6  # of MT30
EPISODE_BYTES = ROWS * (4 * (OBS + ACTION + 1) + 8)
SAMPLE_SECONDS = 0.05


def make_chunk(path: Path, first: int, episodes: int) -> None:
    """A chunk as TD-MPC2 publishes it; episode `first + e` carries that number in obs[e, 0, 0]."""
    import torch
    from tensordict import TensorDict

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(first)
    columns = set_tasks("mt30")
    task = torch.randint(len(columns), (episodes,), generator=generator)
    obs = torch.rand(episodes, ROWS, OBS, generator=generator)
    action = torch.rand(episodes, ROWS, ACTION, generator=generator).mul_(2).sub_(1)
    widths = torch.tensor([[own.obs_dim, own.action_dim] for own in columns])[task]
    for values, own in ((obs, widths[:, 0]), (action, widths[:, 1])):
        for episode, width in enumerate(own.tolist()):
            values[episode, :, width:] = 0.0
    obs[:, 0, 0] = torch.arange(first, first + episodes)  # exact in float32 up to 2^24
    reward = torch.rand(episodes, ROWS, generator=generator)
    action[:, 0], reward[:, 0] = torch.nan, torch.nan
    content = {"obs": obs, "action": action, "reward": reward, "task": task[:, None].expand(-1, ROWS).contiguous()}
    torch.save(TensorDict(content, batch_size=(episodes, ROWS)), path)


class MemoryWatch:
    """The largest anonymous memory (RssAnon) of this process, and of each of its children, while watching."""

    def __init__(self) -> None:
        self.parent = self.child = 0
        self._watching = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing counts inside."""
        self._watching.clear()
        yield
        self._watching.set()

    def start(self) -> None:
        """Count from now on."""
        self._watching.set()

    def _watch(self) -> None:
        while self._watching.wait():
            self.parent = max(self.parent, _anonymous("self"))
            for task in Path("/proc/self/task").iterdir():
                for child in _text(task / "children").split():
                    self.child = max(self.child, _anonymous(child))
            time.sleep(SAMPLE_SECONDS)


def _anonymous(process: str) -> int:
    lines = _text(Path(f"/proc/{process}/status")).splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
        return ""


class GeneratedChunks(TDMPC2Source):
    """Chunks that exist only while they are converted."""

    def __init__(self, folder: Path, chunks: int, episodes: int, watch: MemoryWatch) -> None:
        self._folder, self._episodes, self._watch = folder, episodes, watch
        self.making = 0.0
        self.consumed = 0
        files = [folder / f"chunk_{number}.pt" for number in range(chunks)]
        self._make(files[0], 0)
        super().__init__(files, "mt30")

    def open(self, number: int) -> Archive:
        """Make the chunk and delete the one before, then open it as any other."""
        if number:
            self.files[number - 1].unlink()
        if not self.files[number].exists():
            self._make(self.files[number], number)
        self.consumed += self.files[number].stat().st_size
        return super().open(number)

    def _make(self, path: Path, number: int) -> None:
        started = time.perf_counter()
        with self._watch.paused():
            maker = multiprocessing.get_context("spawn").Process(
                target=make_chunk, args=(path, number * self._episodes, self._episodes)
            )
            maker.start()
            maker.join()
            if maker.exitcode:
                raise SystemExit(f"making {path} failed with status {maker.exitcode}")
        self.making += time.perf_counter() - started


def check(dataset: Dataset, episodes: int) -> None:
    """Every episode from 0 on is there once, under its number, with its own content. Raises SystemExit."""
    found = np.zeros(episodes, np.int64)
    for task, record in enumerate(dataset.tasks):
        for first in range(0, record.episodes, 500):
            block = dataset.read_episodes(task, range(first, min(first + 500, record.episodes)))
            if (block.obs[block.start, 0] != block.id).any() or (block.length != ROWS - 1).any():
                raise SystemExit(f"{record.name}: an episode does not hold what its id says")
            np.add.at(found, block.id, 1)
    if (found != 1).any():
        raise SystemExit(f"{(found == 0).sum()} episodes are missing, {(found > 1).sum()} are there twice")


def main() -> None:
    """Convert, check, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=20.0, help="size of the whole set (10^9 bytes)")
    parser.add_argument("--chunk-gigabytes", type=float, default=1.0, help="size of one chunk; its maker holds it")
    parser.add_argument("--folder", type=Path, help="where to work [default: the system's temporary folder]")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    chunks = max(1, round(arguments.gigabytes / arguments.chunk_gigabytes))
    each = max(1, round(arguments.gigabytes * 1e9 / chunks / EPISODE_BYTES))
    folder = Path(tempfile.mkdtemp(prefix="convert-", dir=arguments.folder))
    watch = MemoryWatch()
    try:
        source = GeneratedChunks(folder, chunks, each, watch)
        made, cpu, started = source.making, time.process_time(), time.perf_counter()
        watch.start()
        dataset = convert(source, folder / "dataset")
        seconds = time.perf_counter() - started - (source.making - made)
        figures = {
            "gigabytes": source.consumed / 1e9,
            "chunks": chunks,
            "episodes": chunks * each,
            "seconds": seconds,
            "megabytes_per_second": source.consumed / 1e6 / seconds,
            "cpu_seconds": time.process_time() - cpu,
            "peak_anonymous_mb_parent": watch.parent / 1e6,
            "peak_anonymous_mb_child": watch.child / 1e6,
            "dataset_gigabytes": sum(record.size for record in dataset.manifest.files) / 1e9,
        }
        check(dataset, chunks * each)
        figures["every_episode_exactly_once"] = True
    finally:
        shutil.rmtree(folder)
    print(json.dumps(figures, indent=1))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
