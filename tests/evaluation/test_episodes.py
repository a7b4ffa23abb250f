"""Episodes of the closed loop: where they end, what lies behind their ends, windows, films, recordings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from flowmbpo.data.behaviour import Behaviour
from flowmbpo.envs.contract import EnvStep, VectorEnv
from flowmbpo.envs.episodes import Fault
from flowmbpo.errors import DataError, EnvironmentFailure
from flowmbpo.evaluation.episodes import Episodes, film_episodes, record_episodes, run_episodes
from flowmbpo.spec import EnvSpec, TaskInfo

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


def test_actions_stand_beside_their_observations_and_rewards(episodes):
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


def test_every_observation_that_is_acted_upon_gives_one_frame(scripted):
    env = scripted([(3, True), (2, False), (9, True)], [(1, True)])
    frames = list(film_episodes(lambda obs, task_ids: obs[:, :1], env, episodes=2, seed=0))
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 1, 2, 10, 11]
    assert all(frame.shape == (2, 2, 3) and frame.dtype == "uint8" for frame in frames)


def test_recording_leaves_the_caller_s_gradients_on(scripted):
    frames = film_episodes(lambda obs, task_ids: obs[:, :1], scripted([(3, True)]), episodes=1, seed=0)
    next(frames)
    next(frames)
    assert torch.is_grad_enabled()


class Numbered(VectorEnv):
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


def test_recorded_rows_hold_observation_action_and_reward():
    episodes = list(record_episodes(Numbered(2), Echo(), 4, seed=3))
    # Copy 0's last 3 steps and copy 1's 4: ends at steps 3, 4, 6, 8.
    assert [episode.task for episode in episodes] == [0, 1, 0, 1]
    assert [len(episode.reward) for episode in episodes] == [3, 4, 3, 4]
    first, second, third, _ = episodes
    np.testing.assert_array_equal(first.obs, [[0, 0], [0, 1], [0, 2], [0, 3]])
    np.testing.assert_allclose(first.action[:, 0], [0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(first.reward, [10.1, 20.2, 30.3], rtol=1e-6)
    assert first.reward.sum(dtype=np.float64) == pytest.approx(60.6, rel=1e-6)
    assert first.terminated.tolist() == [False, False, True]
    np.testing.assert_array_equal(second.obs[-1], [100, 4, 9])  # the final one, not the next episode's first
    assert second.obs.shape == (5, 3)
    assert not second.terminated.any()
    np.testing.assert_array_equal(third.obs[:, 0], [1, 1, 1, 1])
    assert first.success is None


def test_actions_are_recorded_as_the_environment_took_them():
    (episode,) = record_episodes(Numbered(1), Echo(scale=0.7), 1, seed=0)
    np.testing.assert_allclose(episode.action[:, 0], [0.7, 1.0, 1.0], rtol=1e-6)


def test_every_copy_runs_its_share_and_no_more():
    episodes = list(record_episodes(Numbered(3), Echo(), 5, seed=0))
    owners = [int(episode.obs[0, 0]) // 100 for episode in episodes]
    assert sorted(owners) == [0, 0, 1, 1, 2]


def test_broken_episodes_are_counted_and_recorded_anew():
    behaviour = Echo()
    episodes = list(record_episodes(Numbered(1, broken=[(0, 1)]), behaviour, 2, seed=0))
    assert [int(episode.obs[0, 0]) for episode in episodes] == [0, 2]
    assert [episode.faults for episode in episodes] == [0, 1]
    np.testing.assert_array_equal(episodes[1].obs, [[2, 0], [2, 1], [2, 2], [2, 3]])
    # Beginnings: the start, after the first end, after the fault.
    assert [step for step, (first,) in enumerate(behaviour.first) if first] == [0, 3, 5]


def test_environment_that_breaks_too_often_is_given_up():
    broken = [(0, episode) for episode in range(10)]
    with pytest.raises(EnvironmentFailure, match="3 episodes broke while 2 were to be recorded"):
        list(record_episodes(Numbered(1, broken=broken), Echo(), 2, seed=0))


def test_episodes_start_from_the_seed():
    env = Numbered(1)
    list(record_episodes(env, Echo(), 1, seed=17))
    assert env.seeds == [17]
