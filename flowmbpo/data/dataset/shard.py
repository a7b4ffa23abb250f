"""One HDF5 file of a dataset: whole episodes of one task, one row after another.

Where rewards stand. An episode of L transitions takes L + 1 rows, as in the replay buffer: a row holds
an observation and the action, reward and termination of the transition that LEAVES it. The last row
holds the final observation alone (action, reward and terminated are 0). Two episodes, L = 3 and L = 1::

    row              0      1      2      3   |   4      5
    obs              o0     o1     o2     o3  |   p0     p1
    action           a0     a1     a2     0   |   b0     0        o0 --a0, r0--> o1 --a1, r1--> o2 ...
    reward           r0     r1     r2     0   |   s0     0
    terminated       0      0      1      0   |   0      0        o3 ended by itself, p1 by a time limit

    episodes/start   0                            4
    episodes/length  3                            1               transitions

Sources that store a row's observation with the reward that LED to it (r0 beside o1) move their actions
and rewards up by one row when they are converted.

Data sets `obs` f32 [R, O], `action` f32 [R, A], `reward` f32 [R], `terminated` u8 [R] with the task's
own widths, chunked, byte-shuffled, compressed by LZF, with a Fletcher-32 checksum per chunk;
`episodes/{start,length,id,source}` i64 and `episodes/return` f64, the sum of rewards, all [E].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from flowmbpo.data.dataset.manifest import RESTORE
from flowmbpo.errors import DataError

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.float32]  # [R, O + A + 2]: obs, action, reward, terminated

# LZF writes two to three times as fast as gzip level 1 and takes a tenth more room on observed floats.
FILTERS = {"compression": "lzf", "shuffle": True, "fletcher32": True}
CHUNK_ROWS = 4096
ROW_FIELDS = ("obs", "action", "reward", "terminated")
EPISODE_FIELDS = ("length", "id", "return", "source")
EPISODE = np.dtype(list(zip(EPISODE_FIELDS, ("<i8", "<i8", "<f8", "<i8"), strict=True)))


def row_starts(length: Array) -> npt.NDArray[np.int64]:
    """First row of each episode, of `length` [E] transitions each."""
    starts = np.zeros(len(length), np.int64)
    np.cumsum(length[:-1] + 1, out=starts[1:])
    return starts


def encode_shard(task: str, obs_dim: int, rows: Rows, episodes: Array) -> bytes:
    """The bytes of a shard with `rows` and their `episodes` (EPISODE [E]); equal content, equal bytes.

    The file is composed in memory, so that no disk can leave it half-written: about twice the size
    of `rows` while it lasts.
    """
    columns: dict[str, Array] = {
        "obs": rows[:, :obs_dim],
        "action": rows[:, obs_dim:-2],
        "reward": rows[:, -2],
        "terminated": rows[:, -1].astype(np.uint8),
    }
    with h5py.File(f"{task}.h5", "w", driver="core", backing_store=False, block_size=2**24, libver="v110") as file:
        file.attrs["task"] = task
        for name, column in columns.items():
            chunks = (min(CHUNK_ROWS, len(rows)), *column.shape[1:])
            store = file.create_dataset(name, shape=column.shape, dtype=column.dtype, chunks=chunks, **FILTERS)
            for first in range(0, len(rows), CHUNK_ROWS):
                store[first : first + CHUNK_ROWS] = np.ascontiguousarray(column[first : first + CHUNK_ROWS])
        for name, values in (("start", row_starts(episodes["length"])), *((n, episodes[n]) for n in EPISODE_FIELDS)):
            chunks = (min(CHUNK_ROWS, len(values)),)
            file.create_dataset(f"episodes/{name}", data=np.ascontiguousarray(values), chunks=chunks, **FILTERS)
        file.flush()
        return bytes(file.id.get_file_image())


class DamagedShardError(DataError):
    """A shard that cannot be read. `problem` says why, without the path that the message begins with."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}. {RESTORE}")
        self.problem = problem


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """The open HDF5 file. What HDF5 or a checksum refuses in the block is raised as DamagedShardError."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise DamagedShardError(path, f"damaged or not readable ({error})") from error


def read_episodes_index(path: Path) -> dict[str, Array]:
    """Columns `start, length, id, return, source` [E] of one shard."""
    with open_shard(path) as file:
        return {name: file[f"episodes/{name}"][:] for name in ("start", *EPISODE_FIELDS)}


def read_lengths(path: Path) -> npt.NDArray[np.int64]:
    """`episodes/length` [E] of one shard alone; `row_starts` follow from it."""
    with open_shard(path) as file:
        return np.asarray(file["episodes/length"][:], np.int64)
