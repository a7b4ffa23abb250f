"""The replay buffer against a record of everything that was put in, kept as plain Python lists.

Observations are (lane, episode, step), so that a sampled window says where it must have come from.
"""

import io
from collections import Counter, deque
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flowmbpo.data import replay
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.envs.contract import EnvStep
from flowmbpo.envs.episodes import Fault
from flowmbpo.errors import CheckpointError, ConfigError, DataError, EnvironmentFailure

RUNNING, TERMINATED, TRUNCATED, BROKEN = 0, 1, 2, 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Recorder:
    """Feeds a buffer and remembers: all episodes, and per lane the rows that its ring must hold."""

    def __init__(self, num_envs, capacity):
        self.num_envs = num_envs
        self.task_ids = torch.arange(num_envs) * 10
        self.buffer = ReplayBuffer(capacity, num_envs, obs_dim=3, action_dim=2, task_ids=self.task_ids)
        self.episodes = [[] for _ in range(num_envs)]  # per lane and episode: [(reward, terminated)]
        self.rows = [deque(maxlen=capacity // num_envs + 1) for _ in range(num_envs)]
        self.ticks = 0

    def observe(self):
        return torch.tensor([[lane, len(past) - 1, len(past[-1])] for lane, past in enumerate(self.episodes)]).float()

    def begin(self):
        for lane, past in enumerate(self.episodes):
            past.append([])
            self.rows[lane].append((lane, len(past) - 1, 0))
        self.buffer.start(self.observe())

    def step(self, kinds):
        """One step in every lane; `kinds` says per lane whether its episode goes on or how it ends."""
        self.ticks += 1
        terminated = torch.tensor([kind == TERMINATED for kind in kinds])
        truncated = torch.tensor([kind == TRUNCATED for kind in kinds])
        reward = torch.tensor([self.ticks + 1000.0 * lane for lane in range(self.num_envs)])
        for lane, past in enumerate(self.episodes):
            past[-1].append((float(reward[lane]), bool(terminated[lane])))
            self.rows[lane].append((lane, len(past) - 1, len(past[-1])))
        final_obs = self.observe()
        for lane, past in enumerate(self.episodes):
            if kinds[lane] == BROKEN:
                gone = len(past) - 1
                kept = [row for row in self.rows[lane] if row[1] != gone]
                self.rows[lane].clear()
                self.rows[lane].extend(kept)
            if kinds[lane] != RUNNING:
                past.append([])
                self.rows[lane].append((lane, len(past) - 1, 0))
        action = torch.stack((reward, -reward), dim=1)
        success = torch.full((self.num_envs,), float("nan"))
        broken = [lane for lane, kind in enumerate(kinds) if kind == BROKEN]
        final_obs[broken] = self.observe()[broken]
        faults = tuple(Fault(lane, "task", 0, 0, 1, "broke", "", np.zeros((1, 2))) for lane in broken)
        step = EnvStep(self.observe(), reward, terminated, truncated, final_obs, success, faults)
        self.buffer.add(action, step)
        return action, step

    def run(self, kinds):
        for row in kinds:
            self.step(row)
        return self

    def open_rows(self):
        """Where a window may start: the rows whose transition is stored."""
        return {row for lane in self.rows for row in lane if row[2] < len(self.episodes[row[0]][row[1]])}

    def window(self, lane, episode, step, horizon):
        """The window from there by hand: (obs, reward, terminated, valid), padded."""
        left = self.episodes[lane][episode][step : step + horizon]
        padding = horizon - len(left)
        obs = [(lane, episode, step + min(h, len(left))) for h in range(horizon + 1)]
        reward = [reward for reward, _ in left] + [0.0] * padding
        terminated = [ended for _, ended in left] + [False] * padding
        return obs, reward, terminated, [True] * len(left) + [False] * padding

    def check(self, horizon, generator):
        """Every sampled window is a slice of one episode, and every stored transition is a start."""
        starts = self.open_rows()
        assert self.buffer.num_transitions == len(starts)
        if not starts:  # every episode so far broke
            return
        batch = self.buffer.sample(20 * len(starts) + 50, horizon, generator)
        found = set()
        for b in range(batch.valid.shape[1]):
            start = tuple(int(value) for value in batch.obs[0, b])
            if start in found:
                continue
            found.add(start)
            obs, reward, terminated, valid = self.window(*start, horizon)
            assert [tuple(row) for row in batch.obs[:, b].int().tolist()] == obs
            assert batch.reward[:, b].tolist() == reward
            assert batch.action[:, b].tolist() == [[value, -value] for value in reward]
            assert batch.terminated[:, b].tolist() == terminated
            assert batch.valid[:, b].tolist() == valid
            assert int(batch.task[b]) == int(self.task_ids[start[0]])
        assert found == starts


def recorder(num_envs=1, capacity=100, kinds=()):
    made = Recorder(num_envs, capacity)
    made.begin()
    return made.run(kinds)


@st.composite
def histories(draw):
    num_envs = draw(st.integers(1, 3))
    kind = st.sampled_from((RUNNING, RUNNING, RUNNING, RUNNING, TERMINATED, TRUNCATED, BROKEN))
    kinds = draw(st.lists(st.tuples(*[kind] * num_envs), min_size=1, max_size=40))
    return num_envs, draw(st.integers(2 * num_envs, 12 * num_envs)), kinds, draw(st.integers(1, 9))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(histories())
def test_every_window_is_a_padded_slice_of_one_recorded_episode(history):
    num_envs, capacity, kinds, horizon = history
    with patch.object(replay, "INITIAL_ROWS", 3):  # so that memory grows several times
        made = recorder(num_envs, capacity)
        for count, row in enumerate(kinds, start=1):
            made.step(row)
            if count % 7 == 0 or count == len(kinds):
                made.check(horizon, seeded(count))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(histories(), st.data())
def test_a_saved_buffer_goes_on_exactly_as_the_original(history, data):
    num_envs, capacity, kinds, horizon = history
    cut = data.draw(st.integers(0, len(kinds)))
    made = recorder(num_envs, capacity, kinds[:cut])
    loaded = ReplayBuffer(capacity, num_envs, 3, 2, made.task_ids)
    loaded.load_state_dict(through_a_file(made.buffer.state_dict()))
    for row in kinds[cut:]:
        loaded.add(*made.step(row))
    states = made.buffer.state_dict(), loaded.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][name])), name
    assume(made.buffer.num_transitions > 0)
    first, second = (buffer.sample(64, horizon, seeded(1)) for buffer in (made.buffer, loaded))
    assert torch.equal(first.obs, second.obs) and torch.equal(first.action, second.action)
    assert torch.equal(first.reward, second.reward) and torch.equal(first.valid, second.valid)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 2), st.integers(20, 70), st.floats(0.02, 0.3), st.integers(0, 10**6))
def test_a_wrapped_buffer_that_lost_an_episode_is_saved_whole(num_envs, length, rate, seed):
    rng = np.random.default_rng(seed)
    chances = [0.9 - rate, rate / 2, rate / 2, 0.1]
    made = recorder(num_envs, 15 * num_envs, rng.choice(4, p=chances, size=(length, num_envs)).tolist())
    made.step([BROKEN] * num_envs)
    loaded = ReplayBuffer(15 * num_envs, num_envs, 3, 2, made.task_ids)
    loaded.load_state_dict(through_a_file(made.buffer.state_dict()))
    for row in rng.choice(4, p=chances, size=(12, num_envs)).tolist():
        if made.buffer.num_transitions:
            assert made.buffer.sample(40, 3, seeded(1)).obs.equal(loaded.sample(40, 3, seeded(1)).obs)
        loaded.add(*made.step(row))
    made.check(3, seeded())


def test_a_saved_buffer_with_too_few_rows_is_refused():
    made = recorder(1, 9, [(RUNNING,)] * 14)
    state = made.buffer.state_dict()
    state |= {name: state[name][:4] for name in replay.ROW_FIELDS}
    with pytest.raises(CheckpointError, match="lanes use 10: the checkpoint is damaged"):
        ReplayBuffer(9, 1, 3, 2, made.task_ids).load_state_dict(state)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_window_by_hand():
    """Two steps, the second ends the task, one step of the next episode; horizon 3."""
    made = recorder(kinds=[(RUNNING,), (TERMINATED,), (RUNNING,)])
    batch = made.buffer.sample(60, 3, seeded())
    first = int((batch.obs[0] == torch.tensor([0.0, 0.0, 0.0])).all(-1).nonzero()[0])
    assert batch.obs[:, first].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 2]]
    assert batch.reward[:, first].tolist() == [1.0, 2.0, 0.0]
    assert batch.action[:, first].tolist() == [[1, -1], [2, -2], [0, 0]]
    assert batch.terminated[:, first].tolist() == [False, True, False]
    assert batch.valid[:, first].tolist() == [True, True, False]


def test_a_time_limit_ends_the_window_without_marking_it_terminated():
    made = recorder(kinds=[(TRUNCATED,), (RUNNING,)])
    batch = made.buffer.sample(50, 2, seeded())
    assert batch.valid.tolist() == [[True] * 50, [False] * 50]
    assert not batch.terminated.any()


def test_the_ring_keeps_the_newest_transitions_and_wraps():
    made = recorder(capacity=5, kinds=[(RUNNING,)] * 17)
    assert made.buffer.num_transitions == 5
    assert made.open_rows() == {(0, 0, step) for step in range(12, 17)}
    made.check(horizon=4, generator=seeded())


def test_a_broken_episode_leaves_nothing_behind():
    made = recorder(kinds=[(RUNNING,), (TERMINATED,), (RUNNING,), (RUNNING,)])
    assert made.buffer.num_transitions == 4
    made.step((BROKEN,))
    assert made.buffer.num_transitions == 2
    made.run([(RUNNING,), (TRUNCATED,)])
    made.check(horizon=3, generator=seeded(0))
    assert made.buffer.num_transitions == 4


def test_episodes_of_one_step_are_sampled_too():
    made = recorder(capacity=40, kinds=[(TERMINATED,)] * 10)
    batch = made.buffer.sample(400, 16, seeded())
    assert set(batch.obs[0, :, 1].tolist()) == set(range(10))
    assert batch.valid.sum(0).tolist() == [1] * 400


def test_starts_are_uniform_over_transitions_not_over_lanes_or_episodes():
    """Lane 0 holds 4 episodes of 1 step, lane 1 one of 19 and counting: every step weighs the same."""
    kinds = [(TERMINATED if step < 12 else RUNNING, RUNNING) for step in range(19)]
    made = recorder(num_envs=2, capacity=40, kinds=kinds)
    draws = 40_000
    batch = made.buffer.sample(draws, 1, seeded(5))
    counts = Counter(tuple(row) for row in batch.obs[0].int().tolist())
    assert counts.keys() == made.open_rows()
    expected = draws / len(counts)
    assert max(abs(count - expected) for count in counts.values()) < 5 * expected**0.5


def test_start_observations_are_uniform_over_all_but_final_ones():
    made = recorder(num_envs=2, capacity=40, kinds=[(RUNNING, RUNNING), (TERMINATED, RUNNING), (RUNNING, TRUNCATED)])
    draws = 40_000
    obs, task = made.buffer.sample_starts(draws, seeded(5))
    counts = Counter(tuple(row) for row in obs.int().tolist())
    newest = {lane[-1] for lane in made.rows}
    assert newest == {(0, 1, 1), (1, 1, 0)}
    assert counts.keys() == made.open_rows() | newest
    expected = draws / len(counts)
    assert max(abs(count - expected) for count in counts.values()) < 5 * expected**0.5
    assert torch.equal(task, made.task_ids[obs[:, 0].long()])


def test_sampling_depends_on_the_generator_alone():
    made = recorder(num_envs=2, capacity=40, kinds=[(RUNNING, RUNNING)] * 15)
    first = made.buffer.sample(32, 4, seeded(2))
    torch.manual_seed(99)
    again, other = made.buffer.sample(32, 4, seeded(2)), made.buffer.sample(32, 4, seeded(3))
    assert torch.equal(first.obs, again.obs)
    assert not torch.equal(first.obs, other.obs)


def test_sampling_leaves_the_stored_data_alone():
    made = recorder(kinds=[(RUNNING,), (TERMINATED,), (RUNNING,)])
    before = {name: torch.as_tensor(value).clone() for name, value in made.buffer.state_dict().items()}
    batch = made.buffer.sample(20, 5, seeded())
    batch.obs.fill_(7.0)
    batch.reward.fill_(7.0)
    assert all(torch.equal(torch.as_tensor(value), before[name]) for name, value in made.buffer.state_dict().items())


def test_starting_again_cuts_running_episodes_where_they_are():
    made = recorder(num_envs=2, capacity=40, kinds=[(RUNNING, RUNNING)] * 3)
    made.begin()
    made.run([(RUNNING, RUNNING)] * 2)
    assert made.buffer.num_transitions == 10
    made.check(horizon=5, generator=seeded())


def test_memory_grows_with_what_is_stored():
    made = recorder(capacity=1_000_000)
    assert made.buffer.obs.shape[0] == replay.INITIAL_ROWS
    made.run([(RUNNING,)] * 200)
    assert made.buffer.obs.shape[0] == 4 * replay.INITIAL_ROWS  # 201 rows, by doubling
    assert made.buffer.state_dict()["obs"].shape[0] == 201
    assert made.buffer.rows == 1_000_001


def test_an_empty_buffer_says_so():
    made = recorder()
    with pytest.raises(DataError, match="collect"):
        made.buffer.sample(4, 2, seeded())
    with pytest.raises(DataError, match="collect"):
        made.buffer.sample_starts(4, seeded())


def test_a_capacity_that_holds_nothing_is_refused_by_its_key():
    with pytest.raises(ConfigError, match=r"training\.wm_buffer_size 7 .* task\.num_envs 4: use at least 8"):
        ReplayBuffer(7, 4, 3, 2, torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("broken", ["obs", "final_obs", "reward"])
def test_a_diverged_simulation_is_named_and_not_stored(broken):
    made = recorder(num_envs=2, capacity=40, kinds=[(RUNNING, RUNNING)])
    flags = torch.zeros(2, dtype=torch.bool)
    fields = {"obs": torch.zeros(2, 3), "final_obs": torch.zeros(2, 3), "reward": torch.zeros(2)}
    fields[broken][1] = float("nan")
    step = EnvStep(terminated=flags, truncated=flags, success=torch.zeros(2), **fields)
    before = made.buffer.state_dict()
    with pytest.raises(EnvironmentFailure, match=r"copies \[1\]"):
        made.buffer.add(torch.zeros(2, 2), step)
    after = made.buffer.state_dict()
    assert all(torch.equal(torch.as_tensor(after[name]), torch.as_tensor(before[name])) for name in before)


def test_a_state_of_another_shape_is_refused():
    state = recorder(num_envs=2, capacity=40, kinds=[(RUNNING, RUNNING)]).buffer.state_dict()
    tasks = torch.zeros(2, dtype=torch.long)
    with pytest.raises(CheckpointError, match="wm_buffer_size 40, this run 50"):
        ReplayBuffer(50, 2, 3, 2, tasks).load_state_dict(state)
    with pytest.raises(CheckpointError, match="'obs' has dimensions"):
        ReplayBuffer(40, 2, 4, 2, tasks).load_state_dict(state)
    with pytest.raises(CheckpointError, match="lacks starts"):
        ReplayBuffer(40, 2, 3, 2, tasks).load_state_dict({k: v for k, v in state.items() if k != "starts"})
