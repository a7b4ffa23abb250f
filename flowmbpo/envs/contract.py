"""What every vector environment is: steps, ends, faults, seeds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowmbpo.envs.differentiable import DifferentiableCopies
from flowmbpo.spec import EnvSpec

ABSURD = 1e6
"""No task here has observations or rewards of this size; a diverging simulation passes it on its way to infinity.

A simulator that knows its tasks better sets a lower bound, its `absurd`.
"""

MAX_FAILED_STARTS = 10
"""So many episodes of a copy in a row may fail to start, each a fault, before the copy is given up for good."""


@dataclass(frozen=True)
class Fault:
    """One broken episode: which, where it broke, why, and all that replays it.

    `step` counts the agent steps of the episode, the broken one included; 0 is an episode that could
    not start. `actions` are those of the whole episode, float32 [step, A]; nan stands for those taken
    before a checkpoint of a version that did not keep them. `state` is the one that the broken step
    started from.
    """

    index: int
    task: str
    seed: int
    episode: int
    step: int
    reason: str
    state: str
    actions: np.ndarray

    @property
    def at_start(self) -> bool:
        """Whether the episode could not even start: then no step of it was taken."""
        return self.step == 0

    def __str__(self) -> str:
        where = "at the start" if self.at_start else f"in step {self.step}"
        return (
            f"{self.task}: environment {self.index} broke {where} of episode {self.episode} "
            f"(seed {self.seed}): {self.reason}; {self.state}"
        )


def sound(values: np.ndarray, absurd: float = ABSURD) -> bool:
    """Whether every entry is finite and below `absurd`."""
    # A product is the cheapest look at all entries; NaN compares false.
    return bool(np.vdot(values, values) < absurd**2) or bool((np.abs(values) < absurd).all())


def broken_numbers(obs: np.ndarray, reward: float, absurd: float = ABSURD) -> str | None:
    """What is wrong with one copy's observation [O] and reward, or None: not finite, or at least `absurd`."""
    if abs(reward) < absurd and sound(obs, absurd):
        return None
    entries = np.flatnonzero(~(np.abs(obs) < absurd))
    values = ", ".join(f"{entry}: {obs[entry]:.6g}" for entry in entries[:8].tolist())
    finite = bool(np.isfinite(reward) and np.isfinite(obs).all())
    kind = f"absurd (beyond {absurd:.3g})" if finite else "not finite"
    return f"a result is {kind}: reward {reward:.6g}, observation entries {{{values}}}"


def episode_seed(seed: int, index: int, episode: int) -> np.random.SeedSequence:
    """The seed of episode `episode` of copy `index`: a function of these three numbers only."""
    return np.random.SeedSequence([seed, index, episode])


def bounded_actions(action: Float[Tensor, "N A"], num_envs: int, action_dim: int) -> np.ndarray:
    """float32 actions [N, A] in [-1, 1], a copy; the environment is never differentiated.

    In numpy, whose calls cost a third of torch's on arrays of this size. Raises ValueError on another
    shape or on a value that is not finite.
    """
    if action.shape != (num_envs, action_dim):
        raise ValueError(f"actions have shape {tuple(action.shape)}; expected ({num_envs}, {action_dim})")
    values: np.ndarray = action.detach().to(dtype=torch.float32, device="cpu").numpy()
    # One product instead of isfinite over all: it is finite unless an entry is not (or it overflows,
    # which the slow path then sees through).
    if not math.isfinite(np.vdot(values, values)) and not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise ValueError(f"the action of environment {row} is not finite: {values[row].tolist()}")
    bounded: np.ndarray = np.maximum(values, np.float32(-1.0))
    np.minimum(bounded, np.float32(1.0), out=bounded)
    return bounded


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
