"""The contract over whatever starts and steps N environments: seeds, episodes, time limits, faults."""

from __future__ import annotations

import logging
import traceback
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.contract import BatchOutcome, EnvStep, VectorEnv, bounded_actions
from flowmbpo.envs.episodes import ABSURD, MAX_FAILED_STARTS, EpisodeBook, Fault, broken_numbers, sound
from flowmbpo.errors import EnvironmentFailure, FlowMBPOError
from flowmbpo.spec import EnvSpec

_log = logging.getLogger("flowmbpo")


@contextmanager
def simulator_errors(task: str, close: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turns any exception of a simulator into EnvironmentFailure, with the original chained, after `close`.

    Which exceptions a simulator has cannot be known. The project's own errors pass as they are, and
    so do KeyboardInterrupt and the like.
    """
    try:
        yield
    except Exception as error:  # a simulator may raise anything
        close()
        if isinstance(error, FlowMBPOError):
            raise
        line = traceback.format_exception_only(error)[-1].strip()
        raise EnvironmentFailure(f"{task}: the simulator failed: {line}") from error


class EpisodicEnv(VectorEnv):
    """N environments whose episodes are judged here; a subclass starts, steps and describes them.

    Whatever a simulator raises comes out as EnvironmentFailure, and one that fails in a step or a
    reset closes the environment. `absurd` is the size from which on numbers count as broken.
    """

    absurd: float = ABSURD
    _finalizer: weakref.finalize[..., Any]
    """Closes what the environment holds, once: when it is asked to, or forgotten."""

    def __init__(self, spec: EnvSpec, task_ids: Sequence[int]) -> None:
        """`task_ids` says which task of `spec` each environment runs."""
        self.spec = spec
        self.num_envs = len(task_ids)
        self.task_ids = torch.tensor(list(task_ids), dtype=torch.int64)
        self._book = EpisodeBook(spec, task_ids)
        self._lengths = np.array([task.episode_length for task in self._book.tasks])

    @abstractmethod
    def _start(self, indices: Sequence[int], seeds: Sequence[np.random.SeedSequence]) -> Mapping[int, str]:
        """Start an episode in each of these environments; returns those that could not, and why."""

    @abstractmethod
    def _observe(self) -> Float[Tensor, "N O"]:
        """The current observations, a fresh tensor."""

    @abstractmethod
    def _advance(self, action: np.ndarray) -> BatchOutcome:
        """One agent step of all by float32 actions [N, A] in [-1, 1]."""

    @abstractmethod
    def _describe(self, index: int) -> str:
        """The state of one environment that its last step started from, in one line; after a start, the one it gave."""

    def reset(self, seed: int) -> Float[Tensor, "N O"]:
        self._require_open()
        self._book.start(seed)
        with self._failures_close():
            obs, faults = self._begin(list(range(self.num_envs)))
        for fault in faults:
            _log.warning("%s; the next episode begins instead", fault)
        return obs

    @torch.no_grad()
    def step(self, action: Float[Tensor, "N A"]) -> EnvStep:
        self._require_reset()
        bounded = bounded_actions(action, self.num_envs, self.spec.action_dim)
        with self._failures_close():
            outcome = self._advance(bounded)
            before = self._book.number.copy(), self._book.elapsed.copy()
            try:
                self._book.record(bounded)
                return self._conclude(outcome)
            except BaseException:  # whatever is raised leaves all episodes where they were
                self._book.number[:], self._book.elapsed[:] = before
                raise

    def _conclude(self, outcome: BatchOutcome) -> EnvStep:
        """Judge a step that was taken, and start the next episodes where one ended or broke."""
        terminated = outcome.terminated.numpy()
        truncated = (self._book.elapsed >= self._lengths) & ~terminated
        reward, final_obs = outcome.reward, outcome.obs
        success = torch.full_like(reward, torch.nan) if outcome.success is None else outcome.success
        faults = self._broken(outcome.obs.numpy(), outcome.reward.numpy(), outcome.failures)
        broken = np.zeros(self.num_envs, dtype=bool)
        broken[[fault.index for fault in faults]] = True
        if faults:
            terminated, truncated = terminated & ~broken, truncated & ~broken
        ended = terminated | truncated | broken
        if ended.any():
            self._book.begin_next(ended)
            obs, unstarted = self._begin(np.flatnonzero(ended).tolist())
        else:
            obs, unstarted = final_obs.clone(), []
        if faults:
            mask = torch.from_numpy(broken)
            reward, success = reward.masked_fill(mask, 0.0), success.masked_fill(mask, torch.nan)
            final_obs = torch.where(mask.unsqueeze(-1), obs, final_obs)
        ends = torch.from_numpy(terminated), torch.from_numpy(truncated)
        return EnvStep(obs, reward, *ends, final_obs, success, (*faults, *unstarted))

    def _begin(self, indices: list[int]) -> tuple[Float[Tensor, "N O"], list[Fault]]:
        """Start the current episodes of `indices`, or later ones where those cannot start.

        Returns the observations of all environments, and the episodes that could not start.
        """
        unstarted: list[Fault] = []
        for _ in range(MAX_FAILED_STARTS):
            reasons = self._start(indices, [self._book.episode_seed(index) for index in indices])
            obs = self._observe()
            faults = self._broken(obs.numpy(), np.zeros(self.num_envs), reasons)
            if not faults:
                return obs, unstarted
            unstarted += faults
            indices = [fault.index for fault in faults]
            self._book.begin_next(indices)
        raise EnvironmentFailure(f"{MAX_FAILED_STARTS} episodes in a row could not start; the last: {unstarted[-1]}")

    def _broken(self, obs: np.ndarray, reward: np.ndarray, reasons: Mapping[int, str]) -> list[Fault]:
        """The running episodes that broke: for the `reasons` given, or by their numbers."""
        if not reasons and sound(obs, self.absurd) and sound(reward, self.absurd):
            return []
        found = (
            (index, reasons.get(index) or broken_numbers(obs[index], float(reward[index]), self.absurd))
            for index in range(self.num_envs)
        )
        return [self._book.fault(index, why, self._describe(index)) for index, why in found if why is not None]

    def _failures_close(self) -> AbstractContextManager[None]:
        """A simulator that failed halfway must not be stepped on."""
        return simulator_errors(self.spec.label, self.close)

    def close(self) -> None:
        self._finalizer()

    def _require_open(self) -> None:
        if not self._finalizer.alive:
            raise EnvironmentFailure(f"{self.spec.label}: the environment is closed; make it again")

    def _require_reset(self) -> None:
        self._require_open()
        self._book.require_started()
