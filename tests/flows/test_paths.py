"""Flow time: its distribution and its columns."""

import math

import pytest
import torch

from flowmbpo.flows.paths import sample_tau, tau_columns, tau_width


def test_uniform_times_fill_the_unit_interval_row_by_row():
    tau = sample_tau(torch.zeros(20_000, 3), "uniform", torch.Generator().manual_seed(0))
    assert tau.shape == (20_000, 1)
    assert tau.min() >= 0.0
    assert tau.max() < 1.0
    # A uniform's first two moments, to 4 standard errors.
    assert tau.mean().item() == pytest.approx(1 / 2, abs=4 * math.sqrt(1 / 12 / 20_000))
    assert tau.square().mean().item() == pytest.approx(1 / 3, abs=4 * math.sqrt(4 / 45 / 20_000))


def test_times_come_from_the_generator_alone():
    draws = [sample_tau(torch.zeros(4, 3), "uniform", torch.Generator().manual_seed(s)) for s in (7, 7, 8)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_midpoint_times_are_one_half():
    tau = sample_tau(torch.zeros(4, 3, dtype=torch.float64), "midpoint", None)
    assert tau.tolist() == [[0.5]] * 4
    assert tau.dtype == torch.float64


@pytest.mark.parametrize("features", ["scalar", "fourier"])
def test_the_announced_width_is_the_real_one(features):
    assert tau_columns(torch.rand(5, 1), features).shape == (5, tau_width(features))


def test_fourier_columns_are_sines_and_cosines_of_octaves():
    columns = tau_columns(torch.tensor([[0.25]], dtype=torch.float64), "fourier")[0]
    angles = [math.pi * 0.25 * 2**k for k in range(4)]
    expected = [0.25, *(math.sin(a) for a in angles), *(math.cos(a) for a in angles)]
    torch.testing.assert_close(columns, torch.tensor(expected, dtype=torch.float64))


def test_fourier_columns_tell_the_two_ends_of_flow_time_apart():
    start, end = tau_columns(torch.tensor([[0.0], [1.0]]), "fourier")
    assert (start - end).abs().max() > 1.0
