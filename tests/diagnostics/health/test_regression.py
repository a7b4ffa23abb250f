"""Ridge regression on random features."""

import torch

from flowmbpo.diagnostics.health.regression import fit_regression, predict_held_out


def draw(rows, width, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_a_linear_map_is_found():
    x = draw(400, 3)
    y = x @ torch.tensor([[1.0, 0.0], [-2.0, 3.0], [0.5, 0.0]]) + torch.tensor([4.0, -1.0])
    error = (fit_regression(x[:300], y[:300], seed=0)(x[300:]) - y[300:]).square().mean()
    assert error < 1e-4 * y.var()  # what the penalty takes, most of it at the few rows furthest out


def test_a_smooth_map_is_found_on_rows_held_out():
    x = draw(1000, 2)
    y = (x[:, :1] * 2.0).sin() * x[:, 1:]
    half = torch.arange(1000) % 2 == 0
    # Most of what is left is that of the few rows beyond all that the other half has.
    assert (predict_held_out(x, y, half, seed=0) - y).square().mean() < 0.1 * y.var()


def test_noise_is_not_learnt():
    """With nothing to explain the held-out error is that of the mean."""
    x, y = draw(600, 4), draw(600, 1, seed=1)
    half = torch.arange(600) % 2 == 0
    ratio = (predict_held_out(x, y, half, seed=0) - y).square().mean() / y.var()
    assert 0.9 < ratio < 1.15  # one in ten of the rows' information may be fitted by chance


def test_constant_inputs_and_targets_are_no_trouble():
    x = torch.cat([draw(50, 1), torch.full((50, 1), 3.0)], dim=1)
    found = fit_regression(x, torch.full((50, 1), 2.0), seed=0)(x)
    assert torch.allclose(found, torch.full_like(found, 2.0), atol=1e-3)


def test_far_rows_are_met_as_the_nearest_known_ones():
    x = draw(200, 1)
    fitted = fit_regression(x, x, seed=0)
    assert torch.equal(fitted(torch.tensor([[1e6]])), fitted(torch.tensor([[1e3]])))


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    fit_regression(draw(20, 2), draw(20, 1), seed=3)
    assert torch.equal(torch.get_rng_state(), before)
