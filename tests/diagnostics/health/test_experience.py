"""Stretches of fresh and of stored experience."""

import pytest
import torch

from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.health.experience import Part, fresh_stretches, sampled_stretches, stored_stretches
from flowmbpo.envs.contract import EnvStep
from flowmbpo.evaluation.episodes import Episodes

LENGTHS = (4, 7)


def generator():
    return torch.Generator().manual_seed(0)


def make_episodes(lengths=LENGTHS):
    """Observation t of episode n is 100 n + t, and so are the action and the reward that leave it."""
    count, longest = len(lengths), max(lengths)
    number = 100.0 * torch.arange(count) + torch.arange(longest + 1).unsqueeze(1)
    length = torch.tensor(lengths)
    return Episodes(
        obs=number.unsqueeze(-1),
        action=number[:-1].unsqueeze(-1),
        reward=number[:-1].clone(),
        length=length,
        terminated=torch.zeros(count, dtype=torch.bool),
        broken=torch.zeros(count, dtype=torch.bool),
        task=torch.arange(count),
    )


def make_replay(steps=30, lanes=2, capacity=40, length=5):
    """Lane n holds 1000 n + t; an episode ends every `length` steps. 30 steps overflow a lane's 21 rows."""
    replay = ReplayBuffer(capacity, lanes, 1, 1, torch.zeros(lanes, dtype=torch.long))
    now = 1000.0 * torch.arange(lanes).unsqueeze(1)
    replay.start(now)
    for step in range(steps):
        done = torch.full((lanes,), (step + 1) % length == 0)
        after = now + 1.0
        replay.add(
            now,
            EnvStep(
                obs=after,
                final_obs=after,
                reward=now.squeeze(1),
                terminated=torch.zeros(lanes, dtype=torch.bool),
                truncated=done,
                success=torch.full((lanes,), torch.nan),
            ),
        )
        now = after
    return replay


def consistent(rows):
    """Every stretch counts up by one, and what leaves an observation carries its number."""
    assert torch.equal(rows.obs[1:], rows.obs[:-1] + 1.0)
    assert torch.equal(rows.action, rows.obs[:-1])
    assert torch.equal(rows.reward, rows.obs[:-1].squeeze(-1))


def test_fresh_stretches_are_all_that_fit_and_stay_in_their_episode():
    rows = fresh_stretches(make_episodes(), width=3, limit=100, generator=generator())
    consistent(rows)
    assert sorted(rows.obs[0, :, 0].tolist()) == [0.0, 1.0, 100.0, 101.0, 102.0, 103.0, 104.0]
    assert torch.equal(rows.task, rows.obs[0, :, 0].long() // 100)


def test_recordings_of_different_length_are_joined():
    rows = fresh_stretches(make_episodes((2,)), make_episodes((6,)), width=2, limit=100, generator=generator())
    assert sorted(rows.obs[0, :, 0].tolist()) == [0.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    assert rows.episode.unique().tolist() == [0, 1]


def test_a_limit_draws_without_replacement():
    rows = fresh_stretches(make_episodes(), width=1, limit=6, generator=generator())
    assert len(rows) == 6 == len(set(rows.obs[0, :, 0].tolist()))


def test_no_stretch_is_longer_than_its_episode():
    assert len(fresh_stretches(make_episodes(), width=8, limit=10, generator=generator())) == 0


def test_blocks_are_pieces_of_episodes():
    rows = fresh_stretches(make_episodes((60, 60)), width=1, limit=1000, generator=generator())
    pieces = {(n, t // 25) for n in range(2) for t in range(60)}
    assert int(rows.block.max()) + 1 == len(pieces) == 6


@pytest.mark.parametrize("width", [1, 3, 5])
def test_stored_stretches_are_whole_in_a_ring_that_has_wrapped(width):
    replay = make_replay()
    rows = stored_stretches(replay, Part((0, 1)), width, 1000, generator())
    consistent(rows)
    # A lane's 21 rows: the last transition of one episode and its end, 3 whole ones of 6 rows, the newest observation.
    assert len(rows) == 2 * (3 * (6 - width) + (width == 1))


def test_parts_of_a_buffer_are_its_lanes_and_ages():
    replay = make_replay(steps=12, capacity=100)
    lane = stored_stretches(replay, Part((1,)), 1, 1000, generator())
    assert lane.obs.min() == 1000.0 and len(lane) == 12
    old = stored_stretches(replay, Part((0, 1), 0.0, 0.5), 1, 1000, generator())
    new = stored_stretches(replay, Part((0, 1), 0.5, 1.0), 1, 1000, generator())
    assert len(old) + len(new) == 24
    assert float((old.obs[0] % 1000).max()) < float((new.obs[0] % 1000).min())


def test_sampled_stretches_leave_out_what_is_cut():
    rows = sampled_stretches(make_replay(), 4, 500, generator())
    consistent(rows)
    assert 0 < len(rows) < 500


def test_the_first_stretches_are_renumbered():
    rows = fresh_stretches(make_episodes((30, 30, 30)), width=1, limit=1000, generator=generator()).first(2)
    assert rows.obs.shape == (2, 2, 1) and int(rows.episode.max()) <= 1
