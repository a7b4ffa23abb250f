"""Recorded episodes: where they end, what lies behind their ends, and windows cut from them."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from flowmbpo.diagnostics.episodes import Episodes, run_episodes
from flowmbpo.envs.contract import EnvStep, Fault
from flowmbpo.errors import DataError

CPU = torch.device("cpu")
ENDS = (3, 5, 2)  # copy 0 ends itself, copy 1 at the time limit, copy 2's simulator breaks in its second step


@dataclass
class Counting:
    """Copies whose observation is [copy, time] and whose reward is 10 copy + time; they start anew when over."""

    ends: tuple[int, ...] = ENDS
    seed: int | None = None

    def __post_init__(self):
        self.num_envs = len(self.ends)
        self.task_ids = torch.arange(self.num_envs)

    def reset(self, seed):
        self.seed, self.time = seed, torch.zeros(self.num_envs)
        return self._obs()

    def _obs(self):
        return torch.stack([self.task_ids.float(), self.time], dim=1)

    def step(self, action):
        assert action.shape == (self.num_envs, 1)
        reward = 10.0 * self.task_ids + self.time
        self.time = self.time + 1
        over = self.time == torch.tensor(self.ends)
        reached = self._obs()
        broken = over & (self.task_ids == 2)
        self.time = torch.where(over, 0.0, self.time)
        faults = (Fault(2, "t", 0, 0, 2, "why", "s", np.zeros((2, 1), np.float32)),) if bool(broken.any()) else ()
        return EnvStep(
            obs=self._obs(),
            reward=torch.where(broken, 0.0, reward),
            terminated=over & (self.task_ids == 0),
            truncated=over & (self.task_ids == 1),
            final_obs=torch.where(broken.unsqueeze(-1), self._obs(), reached),
            success=torch.full((self.num_envs,), torch.nan),
            faults=faults,
        )


@pytest.fixture
def episodes():
    return run_episodes(lambda obs, task: 1.0 + obs[:, 1:] + 100.0 * task.unsqueeze(1), Counting(), 7, CPU)


def test_every_copy_gives_its_first_episode_whole(episodes):
    assert episodes.length.tolist() == [3, 5, 1]  # the broken step itself does not count
    assert episodes.terminated.tolist() == [True, False, False]
    assert episodes.broken.tolist() == [False, False, True]
    assert episodes.returns.tolist() == [0 + 1 + 2, 10 + 11 + 12 + 13 + 14, 20]
    assert episodes.task.tolist() == [0, 1, 2]


def test_actions_stand_beside_the_observation_they_answer_and_the_reward_they_earned(episodes):
    assert episodes.obs[:4, 0, 1].tolist() == [0, 1, 2, 3]
    assert episodes.action[:3, 0, 0].tolist() == [1, 2, 3]
    assert episodes.action[:5, 1, 0].tolist() == [101, 102, 103, 104, 105]
    assert episodes.reward[:5, 1].tolist() == [10, 11, 12, 13, 14]


def test_behind_an_end_lie_zeros_and_the_last_observation(episodes):
    assert episodes.obs[3:, 0, 1].tolist() == [3, 3, 3]  # never the next episode's
    assert episodes.obs[1:, 2, 1].tolist() == [1, 1, 1, 1, 1]
    assert not episodes.action[3:, 0].any() and not episodes.reward[3:, 0].any()
    assert not episodes.action[1:, 2].any() and not episodes.reward[1:, 2].any()
    assert episodes.valid.sum(0).tolist() == episodes.length.tolist()


def test_windows_keep_to_their_episode(episodes):
    batch = episodes.sample(200, 4, torch.Generator().manual_seed(0))
    steps = torch.arange(5).unsqueeze(1)
    start, lane = batch.obs[0, :, 1], batch.obs[0, :, 0].long()
    left = episodes.length[lane] - start
    assert torch.equal(batch.valid, steps[:-1] < left)
    assert torch.equal(batch.obs[..., 1], torch.minimum(start + steps, start + left))
    assert torch.equal(batch.reward, torch.where(batch.valid, 10.0 * lane + start + steps[:-1], 0.0))
    assert torch.equal(batch.task, lane)
    ended = batch.terminated.nonzero()
    assert len(ended) and all(lane[b] == 0 and start[b] + t == 2 for t, b in ended.tolist())


def test_starts_are_uniform_over_all_transitions(episodes):
    batch = episodes.sample(9000, 1, torch.Generator().manual_seed(0))
    _, counts = torch.unique(batch.obs[0], dim=0, return_counts=True)
    assert len(counts) == 3 + 5 + 1
    # 1000 expected of each; a binomial count strays by 4 of its standard deviations (30) once in 16,000
    assert (counts - 1000).abs().max() < 120


def test_episodes_without_a_transition_are_an_error_in_words():
    nothing = run_episodes(lambda obs, task: torch.zeros(1, 1), Counting(ends=(1,)), 0, CPU)
    empty = Episodes(**{**vars(nothing), "length": torch.zeros(1, dtype=torch.long)})
    with pytest.raises(DataError, match="every episode broke at its first step"):
        empty.sample(4, 2, torch.Generator())


def test_seed_reaches_the_environment():
    env = Counting()
    run_episodes(lambda obs, task: torch.zeros(3, 1), env, 41, CPU)
    assert env.seed == 41
