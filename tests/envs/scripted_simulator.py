"""A simulator whose every number is known, and which fails on command. Imported by worker processes."""

from __future__ import annotations

import math
import os

import numpy as np

from flowmbpo.envs.processes.group import Simulator, StepOutcome
from flowmbpo.errors import EnvironmentFailure
from flowmbpo.spec import TaskInfo

CRASH, EXIT, NOT_A_NUMBER, REWARDLESS, ABSURDITY, DIVERGENCE = 0.9, 0.8, 0.7, 0.6, 0.55, 0.45

TASK = TaskInfo("scripted", "scripted", 3, 2, episode_length=5, action_repeat=1, discount=0.95, can_terminate=True)


class ScriptedSimulator(Simulator):
    """Observation [start, step, action[0]], reward 10 action[1], success equal to the step's number.

    action[0] below 0 terminates; the constants above, as action[0], break it.
    """

    obs_dim = 3
    action_dim = 2

    def __init__(self) -> None:
        self._start = 0.0
        self._step = 0

    def reset(self, seed: np.random.SeedSequence, obs: np.ndarray) -> None:
        self._start = np.random.default_rng(seed).uniform()
        self._step = 0
        obs[:] = (self._start, 0.0, 0.0)

    def step(self, action: np.ndarray, obs: np.ndarray) -> StepOutcome:
        self._step += 1
        first = float(action[0])
        obs[:] = (self._start, self._step, first)
        reward = 10.0 * float(action[1])
        if math.isclose(first, CRASH, rel_tol=1e-6):
            raise ZeroDivisionError("the gearbox is gone")
        if math.isclose(first, EXIT, rel_tol=1e-6):
            os._exit(7)
        if math.isclose(first, NOT_A_NUMBER, rel_tol=1e-6):
            obs[1] = np.nan
        if math.isclose(first, ABSURDITY, rel_tol=1e-6):
            obs[1] = 1e7
        if math.isclose(first, DIVERGENCE, rel_tol=1e-6):
            raise EnvironmentFailure("the physics state is invalid")
        if math.isclose(first, REWARDLESS, rel_tol=1e-6):
            reward = math.inf
        return StepOutcome(reward, first < 0, float(self._step))

    def describe(self) -> str:
        return f"scripted state {self._step}"

    def render(self) -> np.ndarray:
        return np.full((4, 4, 3), self._step, dtype=np.uint8)


NARROW = TaskInfo("narrow", "scripted", 2, 1, episode_length=3, action_repeat=1, discount=0.95, can_terminate=True)


class StubbornSimulator(ScriptedSimulator):
    """Does not start: episodes 1 (it raises) and 2 (not a number) of copy 1, and none of copy 9."""

    def reset(self, seed: np.random.SeedSequence, obs: np.ndarray) -> None:
        super().reset(seed, obs)
        _, copy, episode = seed.entropy  # type: ignore[misc, union-attr]
        if copy == 9 or (copy, episode) == (1, 1):
            raise EnvironmentFailure(f"no room for copy {copy}")
        if (copy, episode) == (1, 2):
            obs[0] = np.nan


class NarrowSimulator(Simulator):
    """Observation [step, action], reward action; a second, narrower task for sets."""

    obs_dim = 2
    action_dim = 1

    def __init__(self) -> None:
        self._step = 0

    def reset(self, seed: np.random.SeedSequence, obs: np.ndarray) -> None:
        self._step = 0
        obs[:] = (0.0, 0.0)

    def step(self, action: np.ndarray, obs: np.ndarray) -> StepOutcome:
        self._step += 1
        obs[:] = (self._step, action[0])
        assert action.shape == (1,)
        return StepOutcome(float(action[0]), False, math.nan)

    def describe(self) -> str:
        return f"narrow state {self._step}"

    def render(self) -> np.ndarray:
        return np.full((4, 4, 3), 100 + self._step, dtype=np.uint8)
