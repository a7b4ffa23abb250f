"""Windows of fresh and of stored experience, paired comparisons, and ridge regression on random features."""

import math

import pytest
import torch

from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.health.experience import (
    compare_errors,
    fit_regression,
    fresh_windows,
    newest_windows,
    predict_held_out,
    sampled_windows,
    stored_windows,
)
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


def make_replay(steps=30, envs=2, capacity=40, length=5):
    """Environment n holds 1000 n + t; an episode ends every `length` steps. 30 steps overflow its 21 rows."""
    replay = ReplayBuffer(capacity, envs, 1, 1, torch.zeros(envs, dtype=torch.long))
    now = 1000.0 * torch.arange(envs).unsqueeze(1)
    replay.start(now)
    for step in range(steps):
        done = torch.full((envs,), (step + 1) % length == 0)
        after = now + 1.0
        replay.add(
            now,
            EnvStep(
                obs=after,
                final_obs=after,
                reward=now.squeeze(1),
                terminated=torch.zeros(envs, dtype=torch.bool),
                truncated=done,
                success=torch.full((envs,), torch.nan),
            ),
        )
        now = after
    return replay


def consistent(rows):
    """Every window counts up by one, and what leaves an observation carries its number."""
    assert torch.equal(rows.obs[1:], rows.obs[:-1] + 1.0)
    assert torch.equal(rows.action, rows.obs[:-1])
    assert torch.equal(rows.reward, rows.obs[:-1].squeeze(-1))


def test_fresh_windows_are_all_that_fit_and_stay_in_their_episode():
    rows = fresh_windows(make_episodes(), width=3, limit=100, generator=generator())
    consistent(rows)
    assert sorted(rows.obs[0, :, 0].tolist()) == [0.0, 1.0, 100.0, 101.0, 102.0, 103.0, 104.0]
    assert torch.equal(rows.task, rows.obs[0, :, 0].long() // 100)


def test_recordings_of_different_length_are_joined():
    rows = fresh_windows(make_episodes((2,)), make_episodes((6,)), width=2, limit=100, generator=generator())
    assert sorted(rows.obs[0, :, 0].tolist()) == [0.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    assert rows.block.unique().tolist() == [0, 1]


def test_a_limit_draws_without_replacement():
    rows = fresh_windows(make_episodes(), width=1, limit=6, generator=generator())
    assert len(rows) == 6 == len(set(rows.obs[0, :, 0].tolist()))


def test_no_window_is_longer_than_its_episode():
    assert len(fresh_windows(make_episodes(), width=8, limit=10, generator=generator())) == 0


def test_blocks_are_pieces_of_episodes():
    rows = fresh_windows(make_episodes((60, 60)), width=1, limit=1000, generator=generator())
    pieces = {(n, t // 25) for n in range(2) for t in range(60)}
    assert int(rows.block.max()) + 1 == len(pieces) == 6


@pytest.mark.parametrize("width", [1, 3, 5])
def test_stored_windows_are_whole_in_a_ring_that_has_wrapped(width):
    replay = make_replay()
    rows = stored_windows(replay, (0, 1), width, 1000, generator())
    consistent(rows)
    # Of 21 rows: the last transition of one episode and its end, 3 whole ones of 6 rows, the newest observation.
    assert len(rows) == 2 * (3 * (6 - width) + (width == 1))


def test_parts_of_a_buffer_are_its_environments_and_ages():
    replay = make_replay(steps=12, capacity=100)
    env = stored_windows(replay, (1,), 1, 1000, generator())
    assert env.obs.min() == 1000.0 and len(env) == 12
    old = stored_windows(replay, (0, 1), 1, 1000, generator(), (0.0, 0.5))
    new = stored_windows(replay, (0, 1), 1, 1000, generator(), (0.5, 1.0))
    assert len(old) + len(new) == 24
    assert float((old.obs[0] % 1000).max()) < float((new.obs[0] % 1000).min())


def test_sampled_windows_leave_out_what_is_cut():
    rows = sampled_windows(make_replay(), 4, 500, generator())
    consistent(rows)
    assert 0 < len(rows) < 500


def test_the_first_windows_are_renumbered():
    rows = fresh_windows(make_episodes((30, 30, 30)), width=1, limit=1000, generator=generator()).first(2)
    assert rows.obs.shape == (2, 2, 1) and int(rows.block.max()) <= 1


def counting_buffer(steps, envs=2):
    """Observation and action are the number of the step; episodes never end."""
    buffer = ReplayBuffer(100, envs, 1, 1, torch.zeros(envs, dtype=torch.long))
    no = torch.zeros(envs, dtype=torch.bool)
    buffer.start(torch.zeros(envs, 1))
    for step in range(1, steps + 1):
        obs = torch.full((envs, 1), float(step))
        buffer.add(obs - 1.0, EnvStep(obs, torch.zeros(envs), no, no, obs, torch.zeros(envs)))
    return buffer


@pytest.mark.parametrize("steps", [30, 80])  # the ring of 51 rows not yet full, and gone round
def test_newest_windows_are_the_newest_transitions_of_every_environment(steps):
    rows = newest_windows(counting_buffer(steps), 10, torch.Generator().manual_seed(0))
    expected = [float(step) for step in range(steps - 5, steps) for _ in range(2)]
    assert sorted(rows.action.flatten().tolist()) == expected
    assert torch.equal(rows.obs[0], rows.action[0]) and torch.equal(rows.obs[1], rows.obs[0] + 1.0)


def test_an_empty_buffer_has_no_newest_windows():
    rows = newest_windows(counting_buffer(0), 10, torch.Generator().manual_seed(0))
    assert len(rows) == 0 and len(rows.block) == 0 and not rows.comparable


def test_the_effect_is_the_mean_log_ratio_and_z_counts_blocks():
    baseline = torch.ones(4)
    other = torch.tensor([2.0, 4.0, 4.0, 2.0])
    paired = compare_errors(baseline, other, torch.tensor([0, 0, 1, 2]))
    # Floored at 1e-4 of the mean: the ratios are off by less than 1e-4.
    assert paired.effect == pytest.approx(1.5 * math.log(2.0), abs=1e-3)
    means = torch.tensor([1.5, 2.0, 1.0], dtype=torch.float64) * math.log(2.0)
    assert paired.z == pytest.approx(float(means.mean() / (means.std() / 3**0.5)), rel=1e-3)
    assert paired.n == 3


def test_differences_far_below_the_mean_error_count_for_nothing():
    baseline, other = torch.tensor([1.0, 1e-12, 1e-12]), torch.tensor([1.0, 1e-9, 1e-9])
    assert abs(compare_errors(baseline, other, torch.arange(3)).effect) < 1e-3


def test_better_needs_both_size_and_significance():
    block = torch.arange(100)
    noise = 1.0 + 0.1 * torch.rand(100, generator=torch.Generator().manual_seed(0))
    assert compare_errors(noise, 0.5 * noise * noise, block).better(0.5, 6.0)
    assert not compare_errors(noise, 0.99 * noise, block).better(0.5, 6.0)
    assert not compare_errors(0.5 * noise, noise, block).better(0.5, 6.0)


def test_equal_errors_have_no_z():
    paired = compare_errors(torch.ones(5), torch.ones(5), torch.arange(5))
    assert (paired.effect, paired.z) == (0.0, 0.0)


def draw(rows, width, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_a_linear_map_is_found():
    x = draw(400, 3)
    y = x @ torch.tensor([[1.0, 0.0], [-2.0, 3.0], [0.5, 0.0]]) + torch.tensor([4.0, -1.0])
    error = (fit_regression(x[:300], y[:300])(x[300:]) - y[300:]).square().mean()
    assert error < 1e-4 * y.var()  # what the penalty takes, most of it at the few rows furthest out


def test_a_smooth_map_is_found_on_rows_held_out():
    x = draw(1000, 2)
    y = (x[:, :1] * 2.0).sin() * x[:, 1:]
    # Most of what is left is that of the few rows beyond all that the other half has.
    assert (predict_held_out((x,), y, torch.arange(1000)) - y).square().mean() < 0.1 * y.var()


def test_noise_is_not_learnt():
    """With nothing to explain the held-out error is that of the mean."""
    x, y = draw(600, 4), draw(600, 1, seed=1)
    ratio = (predict_held_out((x,), y, torch.arange(600)) - y).square().mean() / y.var()
    assert 0.9 < ratio < 1.15  # one in ten of the rows' information may be fitted by chance


def test_constant_inputs_and_targets_are_no_trouble():
    x = torch.cat([draw(50, 1), torch.full((50, 1), 3.0)], dim=1)
    found = fit_regression(x, torch.full((50, 1), 2.0))(x)
    assert torch.allclose(found, torch.full_like(found, 2.0), atol=1e-3)


def test_far_rows_are_met_as_the_nearest_known_ones():
    x = draw(200, 1)
    fitted = fit_regression(x, x)
    assert torch.equal(fitted(torch.tensor([[1e6]])), fitted(torch.tensor([[1e3]])))


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    fit_regression(draw(20, 2), draw(20, 1))
    assert torch.equal(torch.get_rng_state(), before)
