"""Paired comparison of squared errors."""

import math

import pytest
import torch

from flowmbpo.diagnostics.health.comparison import block_means, block_sums, compare_errors


def test_blocks_are_summed_and_averaged_row_by_row():
    x, block = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([0, 1, 0, 1])
    assert block_sums(x, block).tolist() == [4.0, 12.0]
    assert block_means(x, block).tolist() == [2.0, 6.0]
    assert block_sums(torch.stack([x, -x], dim=-1), block).tolist() == [[4.0, -4.0], [12.0, -12.0]]


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
