"""A vector environment over worker processes: the parent's side, in torch."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.contract import EnvStep, VectorEnv, bounded_actions
from flowmbpo.envs.episodes import EpisodeBook, Fault, action_mask, log_unstarted
from flowmbpo.envs.mujoco import NO_OPENGL
from flowmbpo.envs.processes.group import Breakdown, Member, Saved, SharedBuffers, SimulatorFactory, group_handlers
from flowmbpo.envs.processes.rendering import DrawingProcess, drawer_handlers
from flowmbpo.envs.processes.worker import CPU, LOAD, RESET, STEP, LocalWorker, ProcessWorker, WorkerError
from flowmbpo.errors import EnvironmentFailure
from flowmbpo.spec import EnvSpec


class WorkerVectorEnv(VectorEnv):
    """N environments of a task, or of the tasks of a set, spread over `workers` processes (0: all in this one).

    Observations, actions and flags pass through shared memory; one byte each way per worker and
    step starts a step and reports it done. A worker that fails or dies raises EnvironmentFailure
    and closes the environment; `state_dict` still gives the last completed step.
    """

    def __init__(self, spec: EnvSpec, makes: Sequence[SimulatorFactory], task_ids: Sequence[int], workers: int) -> None:
        """`makes[k]` makes simulators of `spec.tasks[k]`; `task_ids` says which task each environment runs."""
        num_envs = len(task_ids)
        self.spec = spec
        self.num_envs = num_envs
        self.task_ids = torch.tensor(list(task_ids), dtype=torch.int64)
        self._book = EpisodeBook(spec, task_ids)
        self._indices = _shares(num_envs, workers)
        buffers = SharedBuffers(num_envs, spec.obs_dim, spec.action_dim, workers)
        self._arrays = buffers.arrays()
        # The same memory as tensors, made once: a clone costs less than a new tensor over a numpy copy.
        self._results = EnvStep(
            obs=torch.from_numpy(self._arrays.obs),
            reward=torch.from_numpy(self._arrays.reward),
            terminated=torch.from_numpy(self._arrays.terminated),
            truncated=torch.from_numpy(self._arrays.truncated),
            final_obs=torch.from_numpy(self._arrays.final_obs),
            success=torch.from_numpy(self._arrays.success),
        )
        self._mask = action_mask(self._book.tasks, spec.action_dim)
        self._obs = torch.zeros(num_envs, spec.obs_dim)
        self._cpu_seconds = 0.0
        self._frames = {
            task: DrawingProcess(partial(drawer_handlers, makes[task], spec.tasks[task]), spec.tasks[task].name)
            for task in sorted(set(task_ids))
        }
        self._workers: list[LocalWorker | ProcessWorker] = []
        self._finalizer = weakref.finalize(self, _close_all, self._workers, list(self._frames.values()))
        members = [Member(index, spec.tasks[task], makes[task]) for index, task in enumerate(task_ids)]
        self._start(members, buffers, workers)
        self._no_payloads = [None] * len(self._workers)

    def reset(self, seed: int) -> Float[Tensor, "N O"]:
        replies = self._exchange(RESET, [seed] * len(self._workers))
        self._book.start(seed)
        log_unstarted(self._unstarted(replies))
        return self._read_obs()

    def step(self, action: Float[Tensor, "N A"]) -> EnvStep:
        self._book.require_started()
        arrays = self._arrays
        np.multiply(bounded_actions(action, self.num_envs, self.spec.action_dim), self._mask, out=arrays.action)
        replies = self._exchange(STEP, self._no_payloads)
        self._book.record(arrays.action)
        faults = [
            self._book.fault(broken.index, broken.reason, broken.state)
            for broken in _breakdowns(replies)
            if not broken.at_start
        ]
        ended = arrays.terminated | arrays.truncated
        if faults:
            ended[[fault.index for fault in faults]] = True
        if ended.any():
            self._book.begin_next(ended)
            faults += self._unstarted(replies)
        results = self._results
        return EnvStep(
            obs=self._read_obs(),
            reward=results.reward.clone(),
            terminated=results.terminated.clone(),
            truncated=results.truncated.clone(),
            final_obs=results.final_obs.clone(),
            success=results.success.clone(),
            faults=tuple(faults),
        )

    def state_dict(self) -> dict[str, Any]:
        """The episodes and their actions, which replay them, and what the replay must end in."""
        self._book.require_started()
        return {**self._book.state_dict(), "obs": self._obs.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> Float[Tensor, "N O"]:
        """Replay the saved episodes.

        Raises ValueError where the state is of another task or number of environments, EnvironmentFailure
        where the replay does not end, bit for bit, in the saved observations.
        """
        self._book.load_state_dict(state)
        seed, self._book.seed = self._book.seed, -1  # not started before the replay has proved right
        self._exchange(LOAD, [(seed, [self._place(index) for index in share]) for share in self._indices])
        obs = self._read_obs()
        changed = (obs != state["obs"]).any(dim=-1).nonzero()[:, 0].tolist()
        if changed:
            raise EnvironmentFailure(
                f"{self.spec.label}: replaying the saved episodes of environments {changed} does not reproduce "
                "their observations; the simulator's version or the processor differs from the one that saved them"
            )
        self._book.seed = seed
        return obs

    @property
    def restores_by_replay(self) -> bool:
        return True

    def render(self, index: int = 0) -> np.ndarray:
        self._book.require_started()
        return self._frames[int(self.task_ids[index])].draw((self._book.seed, self._place(index)))

    def cpu_seconds(self) -> float:
        """CPU time of the worker processes and the drawing process, their start included."""
        if self._finalizer.alive:
            total = sum(frames.cpu_seconds() for frames in self._frames.values())
            if any(isinstance(worker, ProcessWorker) for worker in self._workers):
                total += sum(self._exchange(CPU, [None] * len(self._workers)))
            self._cpu_seconds = max(self._cpu_seconds, total)
        return self._cpu_seconds

    def close(self) -> None:
        if self._finalizer.alive:
            with contextlib.suppress(EnvironmentFailure):  # a worker that died already has no more to say
                self.cpu_seconds()
        self._finalizer()

    def _start(self, members: list[Member], buffers: SharedBuffers, workers: int) -> None:
        builds = [
            partial(group_handlers, [members[index] for index in share], buffers, slot)
            for slot, share in enumerate(self._indices)
        ]
        if workers == 0:
            self._workers.extend(LocalWorker(build) for build in builds)
            return
        # All start at once; each then says that it is ready, or why not.
        for build in builds:
            self._workers.append(ProcessWorker(build, NO_OPENGL))
        for slot, worker in enumerate(self._workers):
            try:
                worker.receive()
            except WorkerError as error:
                self._finalizer()
                raise self._failure(slot, error, "while it was being made") from error

    def _exchange(self, kind: bytes, payloads: list[Any]) -> list[Any]:
        """One command to every worker, and their replies. A failure, or Ctrl-C halfway, closes all."""
        if not self._finalizer.alive:
            raise EnvironmentFailure(f"{self.spec.label}: the environment is closed; make it again")
        complete = False
        slot = 0
        replies = []
        try:
            for slot in range(len(self._workers)):
                self._workers[slot].send(kind, payloads[slot])
            for slot in range(len(self._workers)):
                replies.append(self._workers[slot].receive())
            complete = True
        except WorkerError as error:
            raise self._failure(slot, error) from error
        finally:
            if not complete:
                self._finalizer()
        return replies

    def _failure(self, slot: int, error: WorkerError, when: str | None = None) -> EnvironmentFailure:
        share, busy = self._indices[slot], int(self._arrays.busy[slot])
        index = busy if busy >= 0 else share[0]
        which = f"environment {busy}" if busy >= 0 else f"environments {share[0]} to {share[-1]}"
        if when is None:
            when = (
                f"in episode {self._book.number[index]} after {self._book.elapsed[index]} steps, "
                f"last action {np.round(self._arrays.action[index], 4).tolist()}"
            )
        failure = EnvironmentFailure(f"{self._book.tasks[index].name}: {which} failed {when}: {error}")
        if error.trace:
            failure.add_note(error.trace)
        return failure

    def _unstarted(self, replies: list[list[Breakdown] | None]) -> list[Fault]:
        """The episodes that could not start; counts each environment on to the one that did."""
        faults = []
        for broken in _breakdowns(replies):
            if broken.at_start:
                faults.append(self._book.fault(broken.index, broken.reason, broken.state))
                self._book.begin_next([broken.index])
        return faults

    def _place(self, index: int) -> Saved:
        return Saved(index, int(self._book.number[index]), self._book.actions(index))

    def _read_obs(self) -> Tensor:
        self._obs = self._results.obs.clone()
        return self._obs.clone()


def _shares(num_envs: int, workers: int) -> list[range]:
    """Environments in contiguous shares, as equal as they can be."""
    count = max(min(workers, num_envs), 1)
    bounds = [num_envs * slot // count for slot in range(count + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]


def _breakdowns(replies: list[list[Breakdown] | None]) -> list[Breakdown]:
    return [broken for reply in replies if reply is not None for broken in reply]


def _close_all(workers: list[LocalWorker | ProcessWorker], drawers: list[DrawingProcess]) -> None:
    for process in (*workers, *drawers):
        process.close()
