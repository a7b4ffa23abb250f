"""Endless shuffled windows of a dataset, balanced over tasks, in bounded memory, resumable to the window."""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from flowmbpo.data.batch import Batch
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.dataset.windows import Group, Int64s, LoadedGroup, TaskWindows
from flowmbpo.errors import CheckpointError, ConfigError, DataError, FlowMBPOError
from flowmbpo.spec import EnvSpec

LOGGER = logging.getLogger(__name__)
MEGABYTE = 2**20

# Some columns [b] of a batch: windows number `position` [b] of a group of the task with an id of the spec's.
_Pick = tuple[Future[LoadedGroup], Int64s, Int64s, int]


class WindowSampler:
    """Hands out `Batch`es of windows of `horizon` transitions; every window of a task once per pass.

    A window starts at each transition from which `horizon` of them follow inside the episode; an episode shorter than
    that gives one window, padded and masked as `Batch` says. `TaskWindows` shuffles those of a task, in groups of which
    two fit into its share of memory: while one is dealt the next is read.

    What a batch holds follows from the seed and the number of windows dealt before, whatever the threads
    do. With `balance` "tasks" all tasks take turns; with "proportional" they finish a pass together.
    """

    def __init__(
        self,
        dataset: Dataset,
        spec: EnvSpec,
        *,
        horizon: int,
        batch_size: int,
        seed: int,
        balance: Literal["tasks", "proportional"] = "tasks",
        memory_mb: int = 1024,
        threads: int = 1,
        prefetch: int = 4,
        only: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Windows of the spec's tasks (of task id `only` alone, if given), with the spec's ids and widths.

        Tasks are matched by their plain names. Raises DataError where one is not in the dataset or has
        other widths there, ConfigError where `memory_mb` cannot hold two blocks of each.
        """
        assert horizon > 0 and batch_size > 0 and seed >= 0 and threads > 0 and prefetch > 0
        self.dataset = dataset
        self.device = torch.device(device)
        ids = match_tasks(dataset, spec, only)
        self._identity: dict[str, Any] = {
            "fingerprint": dataset.fingerprint,
            "tasks": [spec.tasks[task].plain_name for task in ids],
            "horizon": horizon,
            "batch_size": batch_size,
            "seed": seed,
            "balance": balance,
            "memory_mb": memory_mb,
        }
        self._spec, self._horizon, self._batch_size = spec, horizon, batch_size
        self._tasks = [TaskWindows(dataset, own, horizon=horizon, seed=seed, spec_id=id_) for id_, own in ids.items()]
        self._share_memory(memory_mb)
        sizes = np.array([task.starts for task in self._tasks], np.int64)
        self.starts = int(sizes.sum())  # windows in the data: those of one pass through all tasks
        # Every task equally often in a seeded order, or as often as it has something to draw.
        count = len(self._tasks)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, len(spec.tasks)))))
        self._rates = np.ones(count, np.int64) if balance == "tasks" else sizes
        # Below 1 after rounding, too: a pass ends with the pass.
        self._offsets = rng.permutation(count) / count if balance == "tasks" else 0.999 * rng.random(count)
        self._ahead = prefetch
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read")  # HDF5 reads one thing at a time anyway
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="batch")
        self._dealt = np.zeros(count, np.int64)  # draws of each task in the batches handed out
        self._restart()

    def next(self) -> Batch:
        """The next batch, on the sampler's device. Raises DataError where a file turns out damaged."""
        self._release()
        while len(self._pending) < self._ahead and self._plan():
            pass
        future, dealt = self._pending.popleft()
        try:
            batch = future.result()
        except FlowMBPOError:
            self._restart()
            raise
        self._dealt = dealt
        self._release()
        return batch.to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins, and of what."""
        return {**self._identity, "dealt": self._dealt.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken: the next batches are those that would have followed.

        Raises DataError where the dataset is another one, CheckpointError where an option differs.
        """
        for key, own in self._identity.items():
            if state.get(key) == own:
                continue
            if key == "fingerprint":
                raise DataError(
                    f"{self.dataset.path}: other data (fingerprint {own[:12]}) than the run was reading "
                    f"({str(state.get(key))[:12]}): resume with the dataset it began with"
                )
            raise CheckpointError(
                f"the saved position in the dataset has {key} {state.get(key)!r}, this run {own!r}: resume with the "
                "value it was saved with"
            )
        dealt = np.asarray(state.get("dealt"))
        if dealt.shape != self._dealt.shape or dealt.dtype.kind != "i" or (dealt < 0).any():
            raise CheckpointError("the saved position in the dataset is damaged: resume from another checkpoint")
        self._dealt = dealt.astype(np.int64)
        self._restart()

    def close(self) -> None:
        """End the threads and let go of the memory."""
        for task in self._tasks:
            task.drop()
        self._workers.shutdown(cancel_futures=True)
        self._reader.shutdown(cancel_futures=True)

    def __enter__(self) -> WindowSampler:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _share_memory(self, memory_mb: int) -> None:
        """Give a task what it needs where an equal part is more: that leaves more for others. Raises ConfigError."""
        left = memory_mb * MEGABYTE
        for position, task in enumerate(sorted(self._tasks, key=lambda task: task.bytes)):
            task.share = min(task.bytes, task.most_bytes, left // (len(self._tasks) - position))
            left -= task.share
        if any(task.share < task.least_bytes for task in self._tasks):
            needed = -(-max(task.least_bytes for task in self._tasks) * len(self._tasks) // MEGABYTE)
            raise ConfigError(
                f"data.memory_mb {memory_mb} is too small for {len(self._tasks)} tasks of {self.dataset.path}, of each "
                f"of which two blocks of episodes must be held: set it to {needed} or more"
            )

    def _restart(self) -> None:
        """Begin to plan after the batches that were handed out."""
        for task in self._tasks:
            task.drop()
        self._planned = self._dealt.copy()
        self._pending: deque[tuple[Future[Batch], Int64s]] = deque()
        # Up to where the groups reach that may be in memory: the one being dealt and the one after it.
        self._current = np.zeros_like(self._dealt)
        self._limit = np.zeros_like(self._dealt)

    def _release(self) -> None:
        """Forget groups that are dealt; have the ones after them read, as far as planning may go."""
        moved = np.flatnonzero(self._dealt >= self._current).tolist()
        after: list[Group] = []
        for number in moved:
            task = self._tasks[number]
            now = task.group(int(self._dealt[number]))
            after.append(task.group(now.end))
            task.release(now)
            task.load(now, self._reader)
            self._current[number], self._limit[number] = now.end, after[-1].end
        for number, group in zip(moved, after, strict=True):  # read behind what the next batches wait for
            self._tasks[number].load(group, self._reader)

    def _plan(self) -> bool:
        """Have the next batch made; not if that takes more groups than memory may hold and others wait."""
        tasks, draws = deal(self._rates, self._offsets, self._planned, self._batch_size)
        counts = np.bincount(tasks, minlength=len(self._tasks))
        if self._pending and (self._planned + counts > self._limit).any():
            return False
        picks: list[_Pick] = []
        for number, task in enumerate(self._tasks):
            columns = np.flatnonzero(tasks == number)
            for group, some in task.split(draws[columns]):
                position = draws[columns[some]] - group.begin
                picks.append((task.load(group, self._reader), columns[some], position, task.spec_id))
        self._planned = self._planned + counts
        self._pending.append((self._workers.submit(self._assemble, picks), self._planned))
        return True

    def _assemble(self, picks: list[_Pick]) -> Batch:
        """The batch, on the CPU; waits for groups that are still being read and raises what reading raised.

        Narrower tasks are zero-padded at the end. Transitions behind an episode's end are marked and padded as
        `Batch` says: their rows are all that of the final observation, which stores no action and no reward.
        """
        horizon, size = self._horizon, self._batch_size
        obs = np.zeros((horizon + 1, size, self._spec.obs_dim), np.float32)
        action = np.zeros((horizon, size, self._spec.action_dim), np.float32)
        reward = np.zeros((horizon, size), np.float32)
        terminated = np.zeros((horizon, size), np.bool_)
        valid = np.zeros((horizon, size), np.bool_)
        task = np.zeros(size, np.int64)
        steps = np.arange(horizon + 1)[:, None]
        for loading, columns, position, task_id in picks:
            group = loading.result()
            first = group.first[position]
            last = group.final[first]
            row = np.minimum(first + steps, last)  # [T + 1, b]
            valid[:, columns] = row[:-1] < last
            rows = group.rows
            obs[:, columns, : rows.obs.shape[1]] = rows.obs[row]
            action[:, columns, : rows.action.shape[1]] = rows.action[row[:-1]]
            reward[:, columns] = rows.reward[row[:-1]]
            terminated[:, columns] = rows.terminated[row[:-1]] != 0
            task[columns] = task_id
        return Batch(*map(torch.from_numpy, (obs, action, reward, terminated, valid, task)))


def deal(rates: Int64s, offsets: npt.NDArray[np.float64], draws: Int64s, rows: int) -> tuple[Int64s, Int64s]:
    """The next rows after `draws` [n] draws of each task: (task [rows], number of its draw [rows]).

    Draw j of task i is due at (j + offset[i]) / rate[i]. With rates of 1 that is a fixed round-robin: any run of rows
    holds every task equally often, give or take one. With rates proportional to the tasks' sizes all tasks get
    through their data together: after the sum of rates rows every task has been dealt exactly its rate. `offsets` lie
    in [0, 1) and decide the order of simultaneous tasks.
    """
    ahead = np.ceil((rows + len(draws)) * (rates / rates.sum())).astype(np.int64) + 1
    task = np.repeat(np.arange(len(draws)), ahead)
    draw = np.arange(len(task)) - np.repeat(np.cumsum(ahead) - ahead, ahead) + draws[task]
    rate = rates[task]
    # Whole passes apart from the rest: the difference between two draws stays exact for ever.
    due = draw // rate + (draw % rate + offsets[task]) / rate
    first = np.argsort(due, kind="stable")[:rows]
    return task[first], draw[first]


def match_tasks(dataset: Dataset, spec: EnvSpec, only: int | None) -> dict[int, int]:
    """The dataset's id of every task of the spec (of task id `only` alone, if given).

    Raises DataError where one is not in the dataset or has other widths there.
    """
    if only is not None and not 0 <= only < len(spec.tasks):
        raise DataError(f"{spec.label} has no task id {only}: it has 0 to {len(spec.tasks) - 1}")
    # The first of a name counts, as in `Dataset.task_id`.
    held = {record.plain_name: number for number, record in reversed(list(enumerate(dataset.tasks))) if record.episodes}
    wanted = {number: task for number, task in enumerate(spec.tasks) if only in (None, number)}
    missing = ", ".join(task.plain_name for task in wanted.values() if task.plain_name not in held)
    if missing:
        raise DataError(f"{dataset.path}: holds no episodes of {missing}. It holds: {', '.join(reversed(held))}")
    ids = {number: held[task.plain_name] for number, task in wanted.items()}
    for number, task in wanted.items():
        record = dataset.tasks[ids[number]]
        if (record.obs_dim, record.action_dim) != (task.obs_dim, task.action_dim):
            raise DataError(
                f"{dataset.path}: task {record.name} has obs_dim {record.obs_dim} and action_dim {record.action_dim}, "
                f"here it has {task.obs_dim} and {task.action_dim}: record or convert the data for this task"
            )
    left_out = [record.name for number, record in enumerate(dataset.tasks) if number not in ids.values()]
    if left_out:
        LOGGER.info("%s: left out, not in %s: %s", dataset.path, spec.label, ", ".join(left_out))
    return ids
