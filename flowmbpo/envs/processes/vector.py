"""A vector environment over worker processes: the parent's side, in torch."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.contract import BatchOutcome, EnvStep
from flowmbpo.envs.episodic import EpisodicEnv
from flowmbpo.envs.mujoco import NO_OPENGL
from flowmbpo.envs.processes.group import SharedSteps, SimulatorFactory, group_handlers
from flowmbpo.envs.processes.rendering import DrawingProcess, drawer_handlers
from flowmbpo.envs.processes.worker import CPU, DESCRIBE, REPLAY, START, STEP, LocalWorker, ProcessWorker, WorkerError
from flowmbpo.errors import EnvironmentFailure
from flowmbpo.spec import EnvSpec


class WorkerVectorEnv(EpisodicEnv):
    """N environments of a task, or of the tasks of a set, spread over `workers` processes (0: all in this one).

    Observations, actions and flags pass through shared memory; one byte each way per worker and
    step starts a step and reports it done. A worker that fails or dies raises EnvironmentFailure
    and closes the environment; `state_dict` still gives the last completed step.
    """

    def __init__(self, spec: EnvSpec, makes: Sequence[SimulatorFactory], task_ids: Sequence[int], workers: int) -> None:
        """`makes[k]` makes simulators of `spec.tasks[k]`; `task_ids` says which task each environment runs."""
        super().__init__(spec, task_ids)
        shares = np.array_split(np.arange(self.num_envs), max(min(workers, self.num_envs), 1))
        self._indices = [share.tolist() for share in shares]  # contiguous, as equal as they can be
        memory = SharedSteps(self.num_envs, spec.obs_dim, spec.action_dim, workers)
        rows, self._busy = memory.rows(), memory.busy()
        self._actions = rows["action"]
        # The same memory as tensors, made once: a clone costs less than a new tensor over a numpy copy.
        self._results = tuple(torch.from_numpy(rows[name]) for name in ("obs", "reward", "terminated", "success"))
        self._obs = torch.zeros(self.num_envs, spec.obs_dim)
        self._cpu_seconds = 0.0
        self._frames = {
            task: DrawingProcess(partial(drawer_handlers, makes[task], spec.tasks[task]), spec.tasks[task].name)
            for task in sorted(set(task_ids))
        }
        self._workers: list[LocalWorker | ProcessWorker] = []
        self._finalizer = weakref.finalize(self, _close_all, self._workers, list(self._frames.values()))
        for slot, share in enumerate(self._indices):
            members = {index: (makes[task_ids[index]], spec.tasks[task_ids[index]]) for index in share}
            build = partial(group_handlers, members, memory, slot)
            self._workers.append(LocalWorker(build) if workers == 0 else ProcessWorker(build, NO_OPENGL))
        # All start at once; each then says that it is ready, or why not.
        for slot, worker in enumerate(self._workers):
            try:
                worker.receive()
            except WorkerError as error:
                self._finalizer()
                raise self._failure(slot, error, "while it was being made") from error

    def reset(self, seed: int) -> Float[Tensor, "N O"]:
        obs = super().reset(seed)
        self._obs = obs.clone()
        return obs

    def step(self, action: Float[Tensor, "N A"]) -> EnvStep:
        step = super().step(action)
        self._obs = step.obs.clone()
        return step

    def state_dict(self) -> dict[str, Any]:
        """The episodes and their actions, which replay them, and what the replay must end in."""
        self._book.require_started()
        return {**self._book.state_dict(), "obs": self._obs.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> Float[Tensor, "N O"]:
        """Replay the saved episodes.

        Raises ValueError where the state is of another task or number of environments, EnvironmentFailure
        where the replay does not end, bit for bit, in the saved observations.
        """
        book = self._book
        book.load_state_dict(state)
        episodes = {index: (book.episode_seed(index), book.actions(index)) for index in range(self.num_envs)}
        seed, book.seed = book.seed, -1  # not started before the replay has proved right
        self._ask_shares(REPLAY, episodes)
        obs = self._observe()
        changed = (obs != state["obs"]).any(dim=-1).nonzero()[:, 0].tolist()
        if changed:
            raise EnvironmentFailure(
                f"{self.spec.label}: replaying the saved episodes of environments {changed} does not reproduce "
                "their observations; the simulator's version or the processor differs from the one that saved them"
            )
        book.seed, self._obs = seed, obs
        return obs.clone()

    @property
    def restores_by_replay(self) -> bool:
        return True

    def render(self, index: int = 0) -> np.ndarray:
        self._book.require_started()
        episode = (self._book.seed, index, int(self._book.number[index]))
        return self._frames[int(self.task_ids[index])].draw((episode, self._book.actions(index)))

    def _start(self, indices: Sequence[int], seeds: Sequence[np.random.SeedSequence]) -> dict[int, str]:
        return _merged(self._ask_shares(START, dict(zip(indices, seeds, strict=True))))

    def _observe(self) -> Float[Tensor, "N O"]:
        return self._results[0].clone()

    def _advance(self, action: np.ndarray) -> BatchOutcome:
        self._actions[:] = action
        failures = _merged(self._exchange(STEP, [None] * len(self._workers)))
        obs, reward, terminated, success = (result.clone() for result in self._results)
        return BatchOutcome(obs, reward, terminated, success, failures)

    def _describe(self, index: int) -> str:
        replies: list[str | None] = self._exchange(DESCRIBE, [index] * len(self._workers))
        return next(text for text in replies if text is not None)

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
        super().close()

    def _exchange(self, kind: bytes, payloads: list[Any]) -> list[Any]:
        """One command to every worker, and their replies. A failure, or Ctrl-C halfway, closes all."""
        self._require_open()
        slot, replies = 0, []
        try:
            for slot in range(len(self._workers)):
                self._workers[slot].send(kind, payloads[slot])
            for slot in range(len(self._workers)):
                replies.append(self._workers[slot].receive())
        except BaseException as error:  # an interrupt too leaves replies in the pipes: no worker can go on
            self._finalizer()
            if isinstance(error, WorkerError):
                raise self._failure(slot, error) from error
            raise
        return replies

    def _failure(self, slot: int, error: WorkerError, when: str | None = None) -> EnvironmentFailure:
        share, busy = self._indices[slot], int(self._busy[slot])
        index = busy if busy >= 0 else share[0]
        which = f"environment {busy}" if busy >= 0 else f"environments {share[0]} to {share[-1]}"
        if when is None:
            when = (
                f"in episode {self._book.number[index]} after {self._book.elapsed[index]} steps, "
                f"last action {np.round(self._actions[index], 4).tolist()}"
            )
        failure = EnvironmentFailure(f"{self._book.tasks[index].name}: {which} failed {when}: {error}")
        if error.trace:
            failure.add_note(error.trace)
        return failure

    def _ask_shares(self, kind: bytes, wanted: Mapping[int, Any]) -> list[Any]:
        """A command to every worker, with what is `wanted` of its own environments."""
        return self._exchange(kind, [{i: wanted[i] for i in share if i in wanted} for share in self._indices])


def _merged(replies: list[dict[int, str] | None]) -> dict[int, str]:
    return {index: reason for reply in replies if reply is not None for index, reason in reply.items()}


def _close_all(workers: list[LocalWorker | ProcessWorker], drawers: list[DrawingProcess]) -> None:
    for process in (*workers, *drawers):
        process.close()
