"""A deterministic vector environment whose episodes are written down beforehand."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from flowmbpo.envs.contract import EnvStep, VectorEnv
from flowmbpo.spec import EnvSpec, TaskInfo

LONGEST = 100


@dataclass(frozen=True)
class Script:
    """One episode: its length, whether the task ends it, and its success (at the last step only)."""

    length: int
    terminates: bool = False
    success: float = float("nan")


def task(name):
    return TaskInfo(name, "scripted", 3, 1, LONGEST, 1, 0.95, can_terminate=True)


class ScriptedEnv(VectorEnv):
    """Observations are (copy, episode, step); the reward of a step is its (clipped) action.

    Copy i plays scripts[i] over and over; with an odd seed it begins at its second episode.
    """

    def __init__(self, scripts, tasks=("scripted",), task_ids=None):
        self.scripts = scripts
        self.num_envs = len(scripts)
        self.spec = EnvSpec(tuple(task(name) for name in tasks))
        self.task_ids = torch.tensor(task_ids or [0] * self.num_envs)
        self.actions = []

    def script(self, copy):
        return self.scripts[copy][self.episode[copy] % len(self.scripts[copy])]

    def observe(self, copy):
        return [float(copy), float(self.episode[copy]), float(self.clock[copy])]

    def reset(self, seed):
        self.episode = [seed % 2] * self.num_envs
        self.clock = [0] * self.num_envs
        return torch.tensor([self.observe(copy) for copy in range(self.num_envs)])

    def step(self, action):
        assert not torch.is_grad_enabled()
        self.actions.append(action)
        rows = [self.advance(copy) for copy in range(self.num_envs)]
        obs, terminated, truncated, final_obs, success = zip(*rows, strict=True)
        return EnvStep(
            obs=torch.tensor(obs),
            reward=action[:, 0].clamp(-1, 1),
            terminated=torch.tensor(terminated),
            truncated=torch.tensor(truncated),
            final_obs=torch.tensor(final_obs),
            success=torch.tensor(success),
        )

    def advance(self, copy):
        script = self.script(copy)
        self.clock[copy] += 1
        final_obs, ended = self.observe(copy), self.clock[copy] == script.length
        if ended:
            self.episode[copy] += 1
            self.clock[copy] = 0
        success = script.success if ended else 0.0 * script.success
        return self.observe(copy), ended and script.terminates, ended and not script.terminates, final_obs, success

    def state_dict(self):
        return {"episode": list(self.episode), "clock": list(self.clock)}

    def load_state_dict(self, state):
        self.episode, self.clock = list(state["episode"]), list(state["clock"])
        return torch.tensor([self.observe(copy) for copy in range(self.num_envs)])

    def render(self, index=0):
        return np.full((2, 2, 3), 10 * self.episode[index] + self.clock[index], dtype=np.uint8)


@pytest.fixture
def scripted():
    """Builds a `ScriptedEnv` from one list of `(length, terminates, success)` per copy."""

    def build(*copies, **options):
        return ScriptedEnv([[Script(*script) for script in copy] for copy in copies], **options)

    return build
