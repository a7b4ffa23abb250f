"""The Gaussian control: its likelihood, its samples, and the bounds of its spread."""

import math

import pytest
import torch
from torch.distributions import Normal

from flowmbpo.nets.simnorm import center

GAUSSIAN = {"kind": "gaussian"}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def distribution(dynamics, t):
    """Mean and std of the scaled displacement, read off the network."""
    mean, raw = dynamics.network(torch.cat([t.source, t.task, t.action], dim=-1)).chunk(2, dim=-1)
    low, high = dynamics.options.min_logstd, dynamics.options.max_logstd
    shift = math.atanh(-2 * low / (high - low) - 1)
    return mean, (low + (high - low) * ((raw + shift).tanh() + 1) / 2).exp()


@pytest.mark.parametrize("geometry", ["tangent", "logit"])
def test_the_loss_is_the_negative_log_likelihood_of_the_scaled_displacement(geometry, make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **GAUSSIAN, geometry=geometry, beta=0.0).eval()
    dynamics.scale.update(0.1 * torch.randn(64, 24, dtype=torch.float64, generator=rng(5)))
    t = make_transition(dynamics.geometry)
    loss, s_next = dynamics.loss(t, rng(), need_next=False)
    mean, std = distribution(dynamics, t)
    log_prob = Normal(mean, std).log_prob((t.target - t.source) / dynamics.scale.std)
    torch.testing.assert_close(loss, -log_prob.mean(-1) - 0.5 * math.log(2 * math.pi))
    assert s_next is None
    assert (std.log() - std.log().mean()).abs().max() > 0.1  # the spread does depend on the state


def test_nll_weight_multiplies_the_loss(make_dynamics, make_transition):
    plain, weighted = (
        make_dynamics(scrambled=True, **GAUSSIAN, nll_weight=weight)
        .eval()
        .loss(make_transition(), rng(), need_next=False)
        for weight in (1.0, 0.05)
    )
    torch.testing.assert_close(weighted[0], 0.05 * plain[0])


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_beta_weighs_each_dimension_by_its_variance_without_gradient(beta, make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **GAUSSIAN, beta=beta).eval()
    t = make_transition()
    loss, _ = dynamics.loss(t, rng(), need_next=False)
    mean, std = distribution(dynamics, t)
    nll = -Normal(mean, std).log_prob(t.target - t.source) - 0.5 * math.log(2 * math.pi)
    expected = (std.detach() ** (2 * beta) * nll).mean(-1)
    torch.testing.assert_close(loss, expected)
    for got, want in zip(
        torch.autograd.grad(loss.sum(), list(dynamics.parameters())),
        torch.autograd.grad(expected.sum(), list(dynamics.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


def test_beta_one_gives_the_mean_the_gradient_of_a_squared_error(make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **GAUSSIAN, beta=1.0).eval()
    t = make_transition()
    head = dynamics.network[-1].bias
    loss, _ = dynamics.loss(t, rng(), need_next=False)
    (gradient,) = torch.autograd.grad(loss.sum(), head)
    mean, _ = distribution(dynamics, t)
    torch.testing.assert_close(gradient[:24], ((mean - (t.target - t.source)) / 24).sum(0).detach())


def test_samples_centre_on_the_mean_step_with_the_likelihood_s_total_variance(make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **GAUSSIAN).eval()
    dynamics.scale.update(torch.linspace(0.05, 0.5, 24) * torch.randn(256, 24, generator=rng(5)))
    t = make_transition(batch=1)
    rows = 40_000
    with torch.no_grad():
        _, std = distribution(dynamics, t)
        sample = dynamics(*(x.expand(rows, -1) for x in (t.source, t.action, t.task)), rng())
        mean = dynamics(t.source, t.action, t.task)[0]
    spread = (dynamics.scale.std * std)[0]
    assert ((sample.mean(0) - mean) / spread).abs().max() < 5 / math.sqrt(rows) * 1.5
    # P diag(spread^2) P * V / (V - 1): tangent, and per group the likelihood's total variance.
    projection = center(torch.eye(24, dtype=torch.float64), 8)
    expected = 8 / 7 * projection @ torch.diag(spread.square()) @ projection
    torch.testing.assert_close(sample.T.cov(), expected, rtol=0, atol=0.03 * spread.square().max().item())
    per_group = lambda variance: variance.unflatten(-1, (8, -1)).sum(-2)  # noqa: E731
    torch.testing.assert_close(per_group(sample.var(0)), per_group(spread.square()), rtol=0.02, atol=0)


def test_an_untrained_sample_spreads_as_the_data_do(make_dynamics, make_transition):
    dynamics = make_dynamics(**GAUSSIAN)
    t = make_transition(batch=20_000, dtype=torch.float32)
    dynamics.loss(t, rng(), need_next=False)
    sample = dynamics(t.source, t.action, t.task, rng()) - t.source
    torch.testing.assert_close(sample.std(0), (t.target - t.source).std(0), rtol=0.05, atol=0)


def test_the_mean_step_is_taken_in_units_of_the_displacement_s_scale(make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **GAUSSIAN).eval()
    dynamics.scale.update(0.1 * torch.randn(64, 24, dtype=torch.float64, generator=rng(5)))
    t = make_transition()
    mean, _ = distribution(dynamics, t)
    expected = t.source + center(dynamics.scale.std * mean, 8)
    torch.testing.assert_close(dynamics(t.source, t.action, t.task), expected)


@pytest.mark.parametrize(("push", "bound"), [(-100.0, -3.0), (100.0, 1.0)])
def test_the_log_std_stays_within_its_bounds(push, bound, make_dynamics, make_transition):
    dynamics = make_dynamics(**GAUSSIAN, min_logstd=-3.0, max_logstd=1.0, beta=0.0).eval().double()
    dynamics.network[-1].bias.data[24:] = push
    t = make_transition()
    loss, _ = dynamics.loss(t, rng(), need_next=False)
    d = t.target - t.source
    torch.testing.assert_close(loss, (bound + 0.5 * (d / math.exp(bound)).square()).mean(-1))


@pytest.mark.parametrize(("low", "high", "start"), [(-5.0, 2.0, 0.0), (-4.0, -2.0, -3.0)])
def test_the_log_std_starts_at_zero_or_else_mid_range(low, high, start, make_dynamics, make_transition):
    dynamics = make_dynamics(**GAUSSIAN, min_logstd=low, max_logstd=high, beta=0.0).eval().double()
    t = make_transition()
    loss, _ = dynamics.loss(t, rng(), need_next=False)
    d = t.target - t.source
    torch.testing.assert_close(loss, (start + 0.5 * (d / math.exp(start)).square()).mean(-1))
