"""Intervals against hand-computed values, and how often they hold the truth."""

import math

import pytest
import torch
from scipy import stats

from flowmbpo.diagnostics.statistics import (
    fit_line,
    jackknife_interval,
    mean_interval,
    middle_interval,
    positive_mean_interval,
    resample_counts,
)

REPEATS = 400  # of a 95% interval: their share scatters by 1.1%, so 0.92 is 2.7 standard deviations below
T_2 = 4.302652729911275  # Student's t, 2 degrees of freedom, 97.5%


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_mean_has_students_interval():
    found = mean_interval(torch.tensor([1.0, 2.0, 6.0]))  # std sqrt(7)
    half = T_2 * math.sqrt(7.0 / 3.0)
    assert (found.value, found.low, found.high) == pytest.approx((3.0, 3.0 - half, 3.0 + half))


def test_single_sample_bounds_nothing():
    found = mean_interval(torch.tensor([2.0]))
    assert (found.value, found.low, found.high) == (2.0, -math.inf, math.inf)


def test_positive_mean_keeps_its_interval_positive():
    found = positive_mean_interval(torch.tensor([1.0, 2.0, 6.0]))
    factor = math.exp(T_2 * math.sqrt(7.0 / 3.0) / 3.0)
    assert (found.value, found.low, found.high) == pytest.approx((3.0, 3.0 / factor, 3.0 * factor))
    assert found.low > 0.0 > mean_interval(torch.tensor([1.0, 2.0, 6.0])).low


def test_equal_samples_leave_an_interval_of_their_rounding():
    found = positive_mean_interval(torch.full((5,), 3.0), rounding=1e-5)
    assert (found.low, found.high) == pytest.approx((3.0 / (1.0 + 1e-5), 3.0 * (1.0 + 1e-5)), rel=1e-12)
    assert positive_mean_interval(torch.zeros(5)).high == 0.0


def test_logarithmic_interval_covers_a_skewed_mean_better():
    """Means of 3 squares of normal numbers, mean 1; 16 of them."""
    rng = generator(1)
    samples = torch.randn(REPEATS, 16, 3, generator=rng).square().mean(-1)
    hits = [
        sum(f(x).low <= 1.0 <= f(x).high for x in samples) / REPEATS for f in (positive_mean_interval, mean_interval)
    ]
    assert hits[0] >= 0.92
    assert hits[0] > hits[1]


def test_jackknife_of_a_mean_is_students_interval():
    x = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    left_out = (x.sum() - x) / 2
    found, plain = jackknife_interval(3.0, left_out), mean_interval(x)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high))


def test_resamples_draw_as_many_rows_as_there_are():
    counts = resample_counts(7, 2000, generator())
    assert counts.shape == (2000, 7)
    assert bool((counts.sum(1) == 7).all())
    # Binomial(7, 1/7): mean 1, variance 6/7; the mean of 2000 scatters by 0.02
    assert torch.allclose(counts.mean(0), torch.ones(7, dtype=torch.float64), atol=0.1)
    assert torch.allclose(counts.var(0), torch.full((7,), 6 / 7, dtype=torch.float64), atol=0.15)


def test_middle_of_resampled_values_leaves_out_undefined_ones():
    found = middle_interval(5.0, torch.cat([torch.linspace(0.0, 100.0, 101), torch.tensor([math.nan] * 50)]))
    assert (found.value, found.low, found.high) == pytest.approx((5.0, 2.5, 97.5))
    assert math.isnan(middle_interval(5.0, torch.tensor([math.nan])).low)


def test_bootstrap_of_a_mean_is_near_its_normal_interval():
    x = torch.randn(200, generator=generator(2))
    found = middle_interval(float(x.mean()), resample_counts(200, 4000, generator()) @ x.double() / 200)
    half = stats.norm.ppf(0.975) * float(x.std(correction=0)) / math.sqrt(200)
    assert found.value == pytest.approx(float(x.mean()))
    # a 97.5% quantile of 4000 scatters by 4% of the half-width
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.15 * half)


def test_line_through_points_with_noise():
    # dx = (-1, 0, 1), dy = (-2, 1, 1): slope 3/2, correlation 3 / sqrt(2 * 6)
    found = fit_line(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 3.0, 3.0]))
    assert (found.slope, found.intercept) == pytest.approx((1.5, -1.0))
    assert found.correlation == pytest.approx(3 / math.sqrt(12))


def test_line_through_constants_has_no_slope_or_no_correlation():
    flat, line = torch.ones(3), torch.tensor([1.0, 2.0, 3.0])
    assert math.isnan(fit_line(flat, line).slope)
    constant = fit_line(line, flat)
    assert constant.slope == 0.0
    assert math.isnan(constant.correlation)
