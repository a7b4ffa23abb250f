"""What every vector environment is: steps, ends, faults, saved states, and steps with gradients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowmbpo.envs.episodes import Fault
from flowmbpo.spec import EnvSpec


@dataclass(frozen=True)
class BatchOutcome:
    """What one agent step of N environments gave, before ends, faults and restarts are judged.

    Of `DifferentiableEnvs` the observations and rewards carry gradient to the actions and the states before.
    `success` is None where no task defines one. `failures` are the environments that refused to go on, and why: of
    them the rest means nothing.
    """

    obs: Float[Tensor, "N O"]
    reward: Float[Tensor, " N"]
    terminated: Bool[Tensor, " N"]
    success: Float[Tensor, " N"] | None = None
    failures: Mapping[int, str] = field(default_factory=dict)


class DifferentiableEnvs(ABC):
    """N environments that go on from the state they were taken at; the environment they come from is not moved.

    No episode restarts and no time limit is kept: the caller masks what lies behind an end.
    """

    @abstractmethod
    def observe(self) -> Float[Tensor, "N O"]:
        """The current observations."""

    @abstractmethod
    def step(self, action: Float[Tensor, "N A"]) -> BatchOutcome:
        """One agent step with actions in [-1, 1]."""


def bounded_actions(action: Float[Tensor, "N A"], num_envs: int, action_dim: int) -> np.ndarray:
    """float32 actions [N, A] in [-1, 1], a copy; the environment is never differentiated.

    In numpy, whose calls cost a third of torch's on arrays of this size. Raises ValueError on another
    shape or on a value that is not finite.
    """
    if action.shape != (num_envs, action_dim):
        raise ValueError(f"actions have shape {tuple(action.shape)}; expected ({num_envs}, {action_dim})")
    values: np.ndarray = action.detach().to(dtype=torch.float32, device="cpu").numpy()
    # One product instead of isfinite over all: finite unless an entry is not, or it overflows.
    if not math.isfinite(np.vdot(values, values)) and not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise ValueError(f"the action of environment {row} is not finite: {values[row].tolist()}")
    return np.asarray(np.minimum(np.maximum(values, np.float32(-1.0)), np.float32(1.0)))


@dataclass(frozen=True)
class EnvStep:
    """What one agent step did. All tensors live on the environment's device.

    `obs` is what to act on next: after an episode's end the next one's first observation (auto-reset). `final_obs`
    is what the action led to: the episode's last observation where it ended, equal to `obs` elsewhere. `terminated`
    (the task ended itself: no bootstrap) and `truncated` (the time limit: bootstrap) are never both true. `success`
    is the task's at this step, nan where it defines none.

    `faults` names the environments whose simulator broke. Their episode must be thrown away whole: `obs` and
    `final_obs` are the next one's first observation, the reward is 0, `success` is nan, neither flag is true. A fault
    `at_start` is of an episode that could not start after this step, of which nothing is in doubt: `obs` is then of
    the first later episode that did.
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
    """N environments of a task (set), seeded, auto-resetting.

    Equal seeds and equal actions give bit-equal observations and rewards. Episode k of environment i is
    determined by (seed, i, k) and the actions alone.
    """

    spec: EnvSpec
    num_envs: int
    task_ids: Int[Tensor, " N"]

    @abstractmethod
    def reset(self, seed: int) -> Float[Tensor, "N O"]:
        """Start every environment's first episode from `seed`; returns the first observations.

        One that cannot start is logged, and the next begins. EnvironmentFailure after `MAX_FAILED_STARTS` in a row.
        """

    @abstractmethod
    def step(self, action: Float[Tensor, "N A"]) -> EnvStep:
        """One agent step (all its repeats) in every environment; actions are clipped to [-1, 1].

        ValueError on a wrong shape or a non-finite action, EnvironmentFailure when a worker dies or a simulator cannot
        go on at all. A single episode that breaks is a fault of the step.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit-equally: tensors, numbers, strings, lists, dicts only."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> Float[Tensor, "N O"]:
        """Return to a saved state (same task and N); returns the observations to act on."""

    @abstractmethod
    def render(self, index: int = 0) -> np.ndarray:
        """The current frame of environment `index`, uint8 [height, width, 3]."""

    @property
    def restores_by_replay(self) -> bool:
        """Whether `load_state_dict` replays each episode up to the saved step: dear in long ones."""
        return False

    def differentiable(self) -> DifferentiableEnvs | None:
        """The environments as they are now, to be stepped with gradients; None where the simulator has none."""
        return None

    def cpu_seconds(self) -> float:
        """CPU time used so far by processes other than this one (workers); 0 in process."""
        return 0.0

    def close(self) -> None:  # noqa: B027  not abstract: environments in this process hold nothing
        """Release processes and memory; safe to call twice."""
