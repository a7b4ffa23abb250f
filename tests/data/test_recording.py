"""Whole episodes of an environment, each step where it belongs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowmbpo.data.behaviour import Behaviour
from flowmbpo.data.recording import record_episodes
from flowmbpo.envs.contract import EnvStep, Fault, VectorEnv
from flowmbpo.errors import EnvironmentFailure
from flowmbpo.spec import EnvSpec, TaskInfo


class Counting(VectorEnv):
    """Copy i's episode k: obs (100 i + k, step, padding 9); it lasts 3 + i steps; reward = 10 step + action.

    Copy 0 terminates, others are truncated. `broken` names (copy, episode) that break in their second step.
    """

    def __init__(self, copies, broken=()):
        tasks = tuple(TaskInfo(name, "toy", width, 1, 10, 1, 0.99, True) for name, width in (("a", 2), ("b", 3)))
        self.spec = EnvSpec(tasks, "pair")
        self.num_envs = copies
        self.task_ids = torch.tensor([copy % 2 for copy in range(copies)])
        self.broken = set(broken)
        self.seeds = []

    def reset(self, seed):
        self.seeds.append(seed)
        self.episode, self.elapsed = [0] * self.num_envs, [0] * self.num_envs
        return self._obs()

    def _obs(self):
        rows = [(100.0 * i + self.episode[i], self.elapsed[i], 9.0 * (i % 2)) for i in range(self.num_envs)]
        return torch.tensor(rows)

    def step(self, action):
        flags = {name: torch.zeros(self.num_envs, dtype=torch.bool) for name in ("terminated", "truncated")}
        self.elapsed = [steps + 1 for steps in self.elapsed]
        final = self._obs()
        reward = torch.tensor(self.elapsed) * 10.0 + action[:, 0]
        faults = []
        for i in range(self.num_envs):
            if (i, self.episode[i]) in self.broken and self.elapsed[i] == 2:
                faults.append(Fault(i, "a", 0, self.episode[i], 2, "burst", "", np.zeros((2, 1), np.float32)))
            elif self.elapsed[i] == 3 + i:
                flags["terminated" if i == 0 else "truncated"][i] = True
            else:
                continue
            self.episode[i], self.elapsed[i] = self.episode[i] + 1, 0
        obs = self._obs()
        for fault in faults:
            final[fault.index], reward[fault.index] = obs[fault.index], 0.0
        success = torch.full((self.num_envs,), torch.nan)
        return EnvStep(obs=obs, reward=reward, final_obs=final, success=success, faults=tuple(faults), **flags)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        return self._obs()

    def render(self, index=0):
        raise AssertionError


class Echo(Behaviour):
    """The observed step as the action, times 0.1, or beyond the bounds; keeps what it was told of beginnings."""

    def __init__(self, scale=0.1):
        self.scale, self.first = scale, []

    def act(self, obs, first):
        self.first.append(first.tolist())
        return self.scale * (obs[:, 1:2] + 1)


def test_every_row_holds_the_observation_that_its_action_left_and_the_reward_it_earned():
    episodes = list(record_episodes(Counting(2), Echo(), 4, seed=3))
    # Copy 0's last 3 steps and copy 1's 4: ends at steps 3, 4, 6, 8.
    assert [episode.task for episode in episodes] == [0, 1, 0, 1]
    assert [len(episode.reward) for episode in episodes] == [3, 4, 3, 4]
    first, second, third, _ = episodes
    np.testing.assert_array_equal(first.obs, [[0, 0], [0, 1], [0, 2], [0, 3]])
    np.testing.assert_allclose(first.action[:, 0], [0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(first.reward, [10.1, 20.2, 30.3], rtol=1e-6)
    assert first.return_ == pytest.approx(60.6, rel=1e-6)
    assert first.terminated.tolist() == [False, False, True]
    np.testing.assert_array_equal(second.obs[-1], [100, 4, 9])  # the final one, not the next episode's first
    assert second.obs.shape == (5, 3)
    assert not second.terminated.any()
    np.testing.assert_array_equal(third.obs[:, 0], [1, 1, 1, 1])
    assert first.success is None


def test_actions_are_recorded_as_the_environment_took_them():
    (episode,) = record_episodes(Counting(1), Echo(scale=0.7), 1, seed=0)
    np.testing.assert_allclose(episode.action[:, 0], [0.7, 1.0, 1.0], rtol=1e-6)


def test_every_copy_runs_its_share_and_no_more():
    episodes = list(record_episodes(Counting(3), Echo(), 5, seed=0))
    owners = [int(episode.obs[0, 0]) // 100 for episode in episodes]
    assert sorted(owners) == [0, 0, 1, 1, 2]


def test_a_broken_episode_is_thrown_away_and_counted_and_the_next_stands_in():
    behaviour = Echo()
    episodes = list(record_episodes(Counting(1, broken=[(0, 1)]), behaviour, 2, seed=0))
    assert [int(episode.obs[0, 0]) for episode in episodes] == [0, 2]
    assert [episode.faults for episode in episodes] == [0, 1]
    np.testing.assert_array_equal(episodes[1].obs, [[2, 0], [2, 1], [2, 2], [2, 3]])
    # Beginnings: the start, after the first end, after the fault.
    assert [step for step, (first,) in enumerate(behaviour.first) if first] == [0, 3, 5]


def test_an_environment_that_breaks_more_often_than_it_delivers_is_given_up():
    broken = [(0, episode) for episode in range(10)]
    with pytest.raises(EnvironmentFailure, match="3 episodes broke while 2 were to be recorded"):
        list(record_episodes(Counting(1, broken=broken), Echo(), 2, seed=0))


def test_episodes_start_from_the_seed():
    env = Counting(1)
    list(record_episodes(env, Echo(), 1, seed=17))
    assert env.seeds == [17]
