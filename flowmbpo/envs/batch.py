"""A vector environment over one batch simulator, in this process; and what such a simulator is."""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.contract import BatchOutcome, DifferentiableEnvs, EnvStep, VectorEnv, bounded_actions
from flowmbpo.envs.episodes import (
    ABSURD,
    MAX_FAILED_STARTS,
    EpisodeBook,
    Fault,
    broken_numbers,
    log_unstarted,
    sound,
)
from flowmbpo.errors import EnvironmentFailure, FlowMBPOError
from flowmbpo.spec import EnvSpec, TaskInfo


class BatchSimulator(ABC):
    """N environments of `task`. It owns the physics; episodes, time limits and resets are its caller's.

    An episode is determined by the seed that it is started with and by its actions, whatever the
    other environments do. All tensors are float32 on the CPU. Errors of the simulator may be raised as they are;
    environments whose numbers are broken are reported by their numbers (not finite, or at least `absurd` in size)
    and restarted. A `start` that raises EnvironmentFailure is repeated environment by environment; those that raise it
    again go on to their next episodes. Any other error ends the whole environment.
    """

    task: TaskInfo
    num_envs: int
    absurd: float = ABSURD

    @abstractmethod
    def start(self, indices: Sequence[int], seeds: Sequence[np.random.SeedSequence]) -> None:
        """Start an episode in each of these environments; the others are left where they are."""

    @abstractmethod
    def observe(self) -> Float[Tensor, "N O"]:
        """The current observations: after `start` those of the new episodes. A fresh tensor."""

    @abstractmethod
    def step(self, action: Float[Tensor, "N A"]) -> BatchOutcome:
        """One agent step of every environment, with actions that are finite and in [-1, 1]."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on: tensors, numbers, strings, lists, dicts only."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a saved state, bit for bit."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """The state of one environment that its last step started from, in one line; after `start`, the one it gave.

        With the step's action it says why the numbers broke, which the state after them no longer does.
        """

    @abstractmethod
    def render(self, index: int) -> np.ndarray:
        """The current frame of one environment, uint8 [height, width, 3].

        Raises EnvironmentUnavailableError, saying what to install, where nothing can draw.
        """

    def differentiable(self) -> DifferentiableEnvs | None:
        """The environments as they are now, to be stepped with gradients; None where the simulator has none."""
        return None

    def close(self) -> None:  # noqa: B027  not abstract: most hold nothing
        """Release threads, processes and memory; safe to call twice."""


class SimulatorErrors(AbstractContextManager[None]):
    """Turns any exception of a simulator into EnvironmentFailure, with the original chained.

    Which exceptions a simulator has cannot be known. The project's own errors pass as they are, and
    so do KeyboardInterrupt and the like. `close`, where given, is called first: a simulator that
    failed halfway through a step must not be stepped on.
    """

    def __init__(self, task: str, close: Callable[[], None] | None = None) -> None:
        self._task = task
        self._close = close

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception):
            return
        if self._close is not None:
            self._close()
        if not isinstance(error, FlowMBPOError):
            line = traceback.format_exception_only(error)[-1].strip()
            raise EnvironmentFailure(f"{self._task}: the simulator failed: {line}") from error


class BatchVectorEnv(VectorEnv):
    """The contract around a `BatchSimulator`: seeds, episodes, time limits, faults, saved states.

    Whatever the simulator raises comes out as EnvironmentFailure, and one that fails in a step or a
    reset closes the environment.
    """

    def __init__(self, simulator: BatchSimulator, spec: EnvSpec | None = None) -> None:
        self.simulator = simulator
        self.spec = EnvSpec((simulator.task,)) if spec is None else spec  # a set of one task has its own name
        self.num_envs = simulator.num_envs
        self.task_ids = torch.zeros(self.num_envs, dtype=torch.int64)
        self._task = simulator.task
        self._book = EpisodeBook(self.spec, [0] * self.num_envs)
        self._no_success = torch.full((self.num_envs,), torch.nan)
        self._closed = False

    def reset(self, seed: int) -> Float[Tensor, "N O"]:
        self._require_open()
        self._book.start(seed)
        with self._failures_close():
            obs, faults = self._begin(list(range(self.num_envs)))
        log_unstarted(faults)
        return obs

    @torch.no_grad()
    def step(self, action: Float[Tensor, "N A"]) -> EnvStep:
        self._require_reset()
        bounded = bounded_actions(action, self.num_envs, self.spec.action_dim)
        self._book.record(bounded)
        with self._failures_close():
            return self._conclude(self.simulator.step(torch.from_numpy(bounded)))

    def state_dict(self) -> dict[str, Any]:
        """The simulator's state; the actions are there for a later fault to be replayed by."""
        self._require_reset()
        with SimulatorErrors(self._task.name):
            return {**self._book.state_dict(), "simulator": self.simulator.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> Float[Tensor, "N O"]:
        """Raises ValueError where the state is of another task or another number of environments."""
        self._require_open()
        self._book.load_state_dict(state)
        with self._failures_close():
            self.simulator.load_state_dict(state["simulator"])
            return self.simulator.observe()

    def render(self, index: int = 0) -> np.ndarray:
        self._require_reset()
        with SimulatorErrors(self._task.name):
            return self.simulator.render(index)

    def differentiable(self) -> DifferentiableEnvs | None:
        self._require_reset()
        return self.simulator.differentiable()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.simulator.close()

    def _conclude(self, outcome: BatchOutcome) -> EnvStep:
        """Judge a step that was taken, and start the next episodes where one ended or broke."""
        terminated = outcome.terminated.numpy()
        truncated = (self._book.elapsed >= self._task.episode_length) & ~terminated
        reward, final_obs = outcome.reward, outcome.obs
        faults = self._find_faults(outcome)
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
            reward = reward.masked_fill(mask, 0.0)
            final_obs = torch.where(mask.unsqueeze(-1), obs, final_obs)
        return EnvStep(
            obs=obs,
            reward=reward,
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            final_obs=final_obs,
            success=self._no_success.clone(),
            faults=(*faults, *unstarted),
        )

    def _begin(self, indices: list[int]) -> tuple[Float[Tensor, "N O"], list[Fault]]:
        """Start the current episodes of `indices`, or later ones where those cannot start.

        Returns the observations of all environments, and the episodes that could not start.
        """
        faults: list[Fault] = []
        for _ in range(MAX_FAILED_STARTS):
            reasons = self._start(indices)
            obs = self.simulator.observe()
            if not reasons and sound(obs.numpy(), self.simulator.absurd):
                return obs, faults
            rows = obs.numpy()
            for index in indices:
                reason = reasons.get(index) or broken_numbers(rows[index], 0.0, self.simulator.absurd)
                if reason is not None:
                    reasons[index] = reason
                    faults.append(self._book.fault(index, reason, self.simulator.describe(index)))
            if not reasons:
                return obs, faults
            indices = sorted(reasons)
            self._book.begin_next(indices)
        raise EnvironmentFailure(f"{MAX_FAILED_STARTS} episodes in a row could not start; the last: {faults[-1]}")

    def _start(self, indices: list[int]) -> dict[int, str]:
        """Start the current episodes of `indices`; those that raise EnvironmentFailure, and why."""
        try:
            self.simulator.start(indices, [self._book.episode_seed(index) for index in indices])
        except EnvironmentFailure as error:
            if len(indices) == 1:
                return {indices[0]: str(error)}
        else:
            return {}
        reasons: dict[int, str] = {}
        for index in indices:  # whose it was is not known
            reasons |= self._start([index])
        return reasons

    def _find_faults(self, outcome: BatchOutcome) -> list[Fault]:
        obs, reward, absurd = outcome.obs.numpy(), outcome.reward.numpy(), self.simulator.absurd
        if sound(obs, absurd) and sound(reward, absurd):
            return []
        reasons = (broken_numbers(obs[index], float(reward[index]), absurd) for index in range(self.num_envs))
        return [
            self._book.fault(index, reason, self.simulator.describe(index))
            for index, reason in enumerate(reasons)
            if reason is not None
        ]

    def _failures_close(self) -> SimulatorErrors:
        return SimulatorErrors(self._task.name, self.close)

    def _require_open(self) -> None:
        if self._closed:
            raise EnvironmentFailure(f"{self.spec.label}: the environment is closed; make it again")

    def _require_reset(self) -> None:
        self._require_open()
        self._book.require_started()
