"""Endless shuffled windows of a dataset, balanced over tasks, in bounded memory, resumable to the window."""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch

from flowmbpo.data.batch import Batch
from flowmbpo.data.dataset.blocks import Blocks, cut_blocks, least_memory, share_memory
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.dataset.schedule import Counts, Schedule
from flowmbpo.data.dataset.streams import Portion, Stretch, TaskStream
from flowmbpo.data.dataset.windows import BatchShape, Pick, assemble
from flowmbpo.errors import CheckpointError, ConfigError, DataError, FlowMBPOError
from flowmbpo.spec import EnvSpec

LOGGER = logging.getLogger(__name__)
MEGABYTE = 2**20


@dataclass
class _Lane:
    """One task of the sampler: its id in the spec, its stream, and the portions that are in memory."""

    task: int
    stream: TaskStream
    stretch: Stretch | None = None  # that planning has reached
    portions: dict[tuple[int, int], Future[Portion]] = field(default_factory=dict)


class WindowSampler:
    """Hands out `Batch`es of windows of `horizon` transitions; every window of a task once per pass.

    A window starts at each transition from which `horizon` of them follow inside the episode; an episode
    shorter than that gives one window, padded and masked as `Batch` says (`short_episodes` counts them).
    A task's data are cut into blocks of whole episodes of some thousand rows. For every pass the blocks are
    permuted and put into groups of which two fit into the task's share of memory, and the windows of a
    group are shuffled together. While one group is dealt the next is read. A task that fits into its share
    as a whole is one group, shuffled perfectly.

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
        self._identity: dict[str, Any] = {
            "fingerprint": dataset.fingerprint,
            "tasks": [spec.tasks[task].plain_name for task in _chosen(spec, only)],
            "horizon": horizon,
            "batch_size": batch_size,
            "seed": seed,
            "balance": balance,
            "memory_mb": memory_mb,
        }
        self._shape = BatchShape(horizon, batch_size, spec.obs_dim, spec.action_dim)
        self._lanes = self._make_lanes(spec, match_tasks(dataset, spec, only), seed, memory_mb)
        sizes = np.array([lane.stream.starts for lane in self._lanes], np.int64)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, len(spec.tasks)))))
        balanced = balance == "tasks"
        self._schedule = Schedule.balanced(len(sizes), rng) if balanced else Schedule.proportional(sizes, rng)
        self._sizes = sizes
        self._ahead = prefetch
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read")  # HDF5 reads one thing at a time anyway
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="batch")
        self._dealt = np.zeros(len(sizes), np.int64)  # draws of each task in the batches handed out
        self._restart()

    @property
    def starts(self) -> int:
        """Windows in the data: those of one pass through all tasks."""
        return int(self._sizes.sum())

    @property
    def short_episodes(self) -> int:
        """Episodes with fewer transitions than the horizon; each gives one padded window."""
        return sum(lane.stream.blocks.short_episodes for lane in self._lanes)

    @property
    def passes(self) -> float:
        """How often the data have been gone through: windows handed out per window there is."""
        return float(self._dealt.sum() / self._sizes.sum())

    @property
    def task_passes(self) -> dict[str, float]:
        """The same for each task, by its name in the dataset."""
        names = [self.dataset.tasks[lane.stream.task].name for lane in self._lanes]
        return dict(zip(names, (self._dealt / self._sizes).tolist(), strict=True))

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
        self._drop()
        self._workers.shutdown(cancel_futures=True)
        self._reader.shutdown(cancel_futures=True)

    def __enter__(self) -> WindowSampler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make_lanes(self, spec: EnvSpec, ids: dict[int, int], seed: int, memory_mb: int) -> list[_Lane]:
        blocks: list[Blocks] = [cut_blocks(self.dataset, task, self._shape.horizon) for task in ids.values()]
        least = np.array([least_memory(part) for part in blocks])
        shares = share_memory(np.array([part.bytes.sum() for part in blocks]), memory_mb * MEGABYTE)
        if (shares < least).any():
            needed = -(-int(least.max()) * len(blocks) // MEGABYTE)
            raise ConfigError(
                f"data.memory_mb {memory_mb} is too small for {len(blocks)} tasks of {self.dataset.path}, of each of "
                f"which two blocks of episodes must be held: set it to {needed} or more"
            )
        return [
            _Lane(
                task,
                TaskStream(self.dataset, own, part, horizon=self._shape.horizon, share=int(share), seed=(seed, task)),
            )
            for (task, own), part, share in zip(ids.items(), blocks, shares, strict=True)
        ]

    def _restart(self) -> None:
        """Begin to plan after the batches that were handed out."""
        self._drop()
        self._planned = self._dealt.copy()
        self._pending: deque[tuple[Future[Batch], Counts]] = deque()
        # Up to where the portions reach that may be in memory: the one being dealt and the one after it.
        self._current = np.zeros_like(self._dealt)
        self._limit = np.zeros_like(self._dealt)

    def _drop(self) -> None:
        for lane in self._lanes:
            for portion in lane.portions.values():
                portion.cancel()
            lane.portions.clear()
            lane.stretch = None

    def _release(self) -> None:
        """Forget portions that are dealt; have the ones after them read, as far as planning may go."""
        later: list[tuple[_Lane, Stretch]] = []
        for number in np.flatnonzero(self._dealt >= self._current):
            lane = self._lanes[number]
            now = lane.stream.stretch(int(self._dealt[number]))
            after = lane.stream.stretch(now.end)
            lane.portions = {key: value for key, value in lane.portions.items() if key >= (now.lap, now.group)}
            self._current[number], self._limit[number] = now.end, after.end
            self._portion(lane, now)
            later.append((lane, after))
        for lane, after in later:  # read behind what the next batches wait for
            self._portion(lane, after)

    def _portion(self, lane: _Lane, stretch: Stretch) -> Future[Portion]:
        key = (stretch.lap, stretch.group)
        if key not in lane.portions:
            lane.portions[key] = self._reader.submit(lane.stream.load, stretch)
        return lane.portions[key]

    def _plan(self) -> bool:
        """Have the next batch made; not if that takes more portions than memory may hold and others wait."""
        tasks, draws = self._schedule.deal(self._planned, self._shape.size)
        counts = np.bincount(tasks, minlength=len(self._lanes))
        if self._pending and (self._planned + counts > self._limit).any():
            return False
        picks: list[Pick] = []
        columns = np.argsort(tasks, kind="stable")  # of each task in turn
        for number, end in zip(np.flatnonzero(counts), np.cumsum(counts[counts > 0]), strict=True):
            own = columns[end - counts[number] : end]
            picks += self._picks(self._lanes[number], own, draws[own])
        self._planned = self._planned + counts
        self._pending.append((self._workers.submit(assemble, self._shape, picks), self._planned))
        return True

    def _picks(self, lane: _Lane, columns: Counts, draws: Counts) -> list[Pick]:
        picks: list[Pick] = []
        while len(draws):
            begin = int(draws[0])
            if lane.stretch is None or not lane.stretch.begin <= begin < lane.stretch.end:
                lane.stretch = lane.stream.stretch(begin)
            here = min(len(draws), lane.stretch.end - begin)
            portion = self._portion(lane, lane.stretch)
            picks.append(Pick(portion, columns[:here], draws[:here] - lane.stretch.begin, lane.task))
            columns, draws = columns[here:], draws[here:]
        return picks


def _chosen(spec: EnvSpec, only: int | None) -> list[int]:
    """The spec's task ids that are wanted."""
    if only is None:
        return list(range(len(spec.tasks)))
    if not 0 <= only < len(spec.tasks):
        raise DataError(f"{spec.label} has no task id {only}: it has 0 to {len(spec.tasks) - 1}")
    return [only]


def match_tasks(dataset: Dataset, spec: EnvSpec, only: int | None) -> dict[int, int]:
    """The dataset's id of every task of the spec (of task id `only` alone, if given).

    Raises DataError where one is not in the dataset or has other widths there.
    """
    # The first of a name counts, as in `Dataset.task_id`.
    held = {record.plain_name: number for number, record in reversed(list(enumerate(dataset.tasks))) if record.episodes}
    wanted = {task: spec.tasks[task] for task in _chosen(spec, only)}
    missing = [task.plain_name for task in wanted.values() if task.plain_name not in held]
    if missing:
        raise DataError(
            f"{dataset.path}: holds no episodes of {', '.join(missing)}. It holds: {', '.join(reversed(held))}"
        )
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
