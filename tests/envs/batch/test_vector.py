"""The contract around a batch simulator: episodes, seeds, limits, faults, saved states."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowmbpo.envs.batch.simulator import BatchOutcome, BatchSimulator
from flowmbpo.envs.batch.vector import BatchVectorEnv
from flowmbpo.envs.spec import TaskInfo
from flowmbpo.errors import EnvironmentFailure

TASK = TaskInfo("counted", "scripted", 3, 2, episode_length=5, action_repeat=1, discount=0.95, can_terminate=True)
NAN, ABSURD, REWARDLESS = 0.7, 0.6, 0.55


class CountedBatch(BatchSimulator):
    """Observation [start, step, action[0]], reward 10 action[1]; action[0] < 0 terminates, some values break it."""

    task = TASK

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.first = torch.zeros(num_envs)
        self.clock = torch.zeros(num_envs)
        self.last = torch.zeros(num_envs)
        self.broken_start = False

    def start(self, indices, seeds):
        for index, seed in zip(indices, seeds, strict=True):
            self.first[index] = np.nan if self.broken_start else np.random.default_rng(seed).uniform()
            self.clock[index] = self.last[index] = 0.0

    def observe(self):
        return torch.stack((self.first, self.clock, self.last), dim=1)

    def step(self, action):
        self.clock += 1
        self.last = action[:, 0].clone()
        obs, reward = self.observe(), 10 * action[:, 1]
        obs[self.last == torch.tensor(NAN), 1] = torch.nan
        obs[self.last == torch.tensor(ABSURD), 1] = 2e6
        reward[self.last == torch.tensor(REWARDLESS)] = torch.inf
        return BatchOutcome(obs, reward, self.last < 0, self.clock.clone())

    def state_dict(self):
        return {"first": self.first.clone(), "clock": self.clock.clone(), "last": self.last.clone()}

    def load_state_dict(self, state):
        self.first, self.clock, self.last = (state[name].clone() for name in ("first", "clock", "last"))

    def describe(self, index):
        return f"clock {self.clock[index]:.0f}"

    def render(self, index):
        return np.full((2, 2, 3), int(self.clock[index]), dtype=np.uint8)


def make(num_envs=4):
    return BatchVectorEnv(CountedBatch(num_envs))


def only(index, value):
    action = torch.zeros(4, 2)
    action[index, 0] = value
    return action


def test_ends_by_the_task_and_by_the_clock_start_the_next_episode():
    env = make()
    start = env.reset(2)
    assert start[:, 0].unique().numel() == 4
    env.step(torch.full((4, 2), 0.5))
    step = env.step(only(2, -0.5))
    assert step.terminated.tolist() == [False, False, True, False]
    assert step.final_obs[2].tolist() == pytest.approx([start[2, 0].item(), 2, -0.5])
    assert step.obs[2, 1:].tolist() == [0, 0]
    assert step.obs[2, 0] != start[2, 0]
    assert step.obs[[0, 1, 3]].equal(step.final_obs[[0, 1, 3]])
    for _ in range(2):
        env.step(torch.zeros(4, 2))
    step = env.step(only(0, -1.0))
    assert step.terminated.tolist() == [True, False, False, False]
    assert step.truncated.tolist() == [False, True, False, True]
    assert step.success.tolist() == [5, 5, 3, 5]


def test_an_episode_depends_on_seed_copy_and_number_alone():
    few, many = make(2), make(4)
    assert few.reset(7).equal(many.reset(7)[:2])
    few.step(torch.full((2, 2), -0.5))  # all terminate: episode 1
    many.step(torch.tensor([[-0.5, 0.0], [-0.5, 0.0], [0.1, 0.0], [0.1, 0.0]]))
    a, b = few.step(torch.zeros(2, 2)), many.step(torch.zeros(4, 2))
    assert a.obs.equal(b.obs[:2])
    assert not few.reset(8).equal(few.reset(7))


@pytest.mark.parametrize(("value", "kind"), [(NAN, "not finite"), (ABSURD, "absurd"), (REWARDLESS, "not finite")])
def test_a_copy_with_broken_numbers_is_a_fault_and_restarts(value, kind):
    env = make()
    env.reset(1)
    env.step(torch.full((4, 2), 0.25))
    action = only(1, value)
    action[2, 0] = -1.0
    step = env.step(action)
    (fault,) = step.faults
    assert (fault.index, fault.episode, fault.step, fault.state) == (1, 0, 2, "clock 2")
    assert kind in fault.reason
    assert fault.actions.tolist() == [pytest.approx([value, 0.0])]
    assert step.done.tolist() == [False, False, True, False]
    assert step.reward[1] == 0
    assert step.success[1].isnan()
    assert step.obs[1].equal(step.final_obs[1])
    assert step.obs[:, 1].tolist() == [2, 0, 0, 2]
    assert env.state_dict()["episode"].tolist() == [0, 1, 1, 0]
    assert not env.step(torch.zeros(4, 2)).faults


def test_a_start_that_is_broken_cannot_be_gone_on_from():
    env = make()
    env.simulator.broken_start = True
    with pytest.raises(EnvironmentFailure, match=r"first observations of environments \[0, 1, 2, 3\].*clock 0"):
        env.reset(0)


def test_a_saved_state_goes_on_bit_for_bit():
    env, action = make(), torch.full((4, 2), 0.25)
    env.reset(3)
    for _ in range(7):
        obs = env.step(action).obs
    fresh = make()
    assert fresh.load_state_dict(env.state_dict()).equal(obs)
    for _ in range(7):
        assert fresh.step(action).obs.equal(env.step(action).obs)
    with pytest.raises(ValueError, match="4 x 'counted'; this one is 2 x 'counted'"):
        make(2).load_state_dict(env.state_dict())


def test_actions_are_checked_and_clipped():
    env = make()
    with pytest.raises(ValueError, match="reset"):
        env.step(torch.zeros(4, 2))
    env.reset(0)
    with pytest.raises(ValueError, match="shape"):
        env.step(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="environment 2 is not finite"):
        env.step(only(2, float("nan")))
    assert env.step(torch.full((4, 2), 3.0)).reward.tolist() == [10, 10, 10, 10]
    assert int(env.render(1)[0, 0, 0]) == 1
