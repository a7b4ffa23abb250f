"""The vector-environment contract: torch in, torch out, many copies stepped at once.

Letters: N environments, O observation, A action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowmbpo.envs.differentiable import DifferentiableCopies
from flowmbpo.envs.faults import Fault
from flowmbpo.envs.spec import EnvSpec


@dataclass(frozen=True)
class EnvStep:
    """What one agent step did. All tensors live on the environment's device.

    `obs` is what to act on next: after an episode's end it is already the next episode's first
    observation (auto-reset). `final_obs` is the observation that the action led to: the episode's
    last one where it ended, equal to `obs` elsewhere. `terminated` (the task ended itself: no
    bootstrap) and `truncated` (the time limit: bootstrap) are never both true. `success` is the
    task's success at this step, nan where the task defines none.

    `faults` names the copies whose simulator broke in this step. Their episode must be thrown away
    whole: `obs` is already the next episode's first observation, `final_obs` equals it, the reward
    is 0, `success` is nan, and neither `terminated` nor `truncated` is true. A fault `at_start` is of
    an episode that could not start after this step: nothing of the step is in doubt, `obs` is the
    first observation of the first later episode that did start, and no tensor shows the gap.
    """

    obs: Float[Tensor, "N O"]
    reward: Float[Tensor, " N"]
    terminated: Bool[Tensor, " N"]
    truncated: Bool[Tensor, " N"]
    final_obs: Float[Tensor, "N O"]
    success: Float[Tensor, " N"]
    faults: tuple[Fault, ...] = ()

    @property
    def done(self) -> Bool[Tensor, " N"]:
        """Episodes that ended at this step, either way."""
        return self.terminated | self.truncated


class VectorEnv(ABC):
    """N copies of a task (set), seeded, auto-resetting.

    Equal seeds and equal actions give bit-equal observations and rewards. Episode k of copy i is
    determined by (seed, i, k) and the actions alone.
    """

    spec: EnvSpec
    num_envs: int
    task_ids: Int[Tensor, " N"]

    @abstractmethod
    def reset(self, seed: int) -> Float[Tensor, "N O"]:
        """Start every copy's first episode from `seed`; returns the first observations.

        An episode that cannot start is logged and its copy's next one begins instead.
        Raises EnvironmentFailure where `MAX_FAILED_STARTS` in a row could not.
        """

    @abstractmethod
    def step(self, action: Float[Tensor, "N A"]) -> EnvStep:
        """One agent step (all its repeats) in every copy; actions are clipped to [-1, 1].

        Raises ValueError on a wrong shape or a non-finite action, EnvironmentFailure when a worker
        dies or a simulator cannot go on at all. A single episode that breaks is a fault of the step.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit-equally: tensors, numbers, strings, lists, dicts only."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> Float[Tensor, "N O"]:
        """Return to a saved state (same task and N); returns the observations to act on."""

    @abstractmethod
    def render(self, index: int = 0) -> np.ndarray:
        """The current frame of copy `index`, uint8 [height, width, 3]."""

    @property
    def restores_by_replay(self) -> bool:
        """Whether `load_state_dict` runs each copy's episode again up to the saved step: dear in long episodes."""
        return False

    def differentiable(self) -> DifferentiableCopies | None:
        """The copies as they are now, to be stepped with gradients; None where the simulator has none."""
        return None

    def cpu_seconds(self) -> float:
        """CPU time used so far by processes other than this one (workers); 0 in process."""
        return 0.0

    def close(self) -> None:  # noqa: B027  not abstract: copies in this process hold nothing
        """Release processes and memory; safe to call twice."""
