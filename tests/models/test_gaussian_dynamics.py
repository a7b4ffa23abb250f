"""The Gaussian control: its likelihood, its samples, and the bounds of its spread."""

import math
from dataclasses import replace

import pytest
import torch
from torch.distributions import MultivariateNormal

GAUSSIAN = {"kind": "gaussian"}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def distribution(dynamics, t):
    """Mean and std of the scaled displacement, read off the network."""
    mean, raw = dynamics.network(torch.cat([t.source, t.task, t.action], dim=-1)).chunk(2, dim=-1)
    low, high = dynamics.options.min_logstd, dynamics.options.max_logstd
    shift = math.atanh(-2 * low / (high - low) - 1)
    return mean, (low + (high - low) * ((raw + shift).tanh() + 1) / 2).exp()


def before_condition(dynamics, t):
    """Mean and variance of the displacement before its groups are conditioned to sum to 0."""
    mean, std = distribution(dynamics, t)
    return dynamics.scale.std * mean, 8 / 7 * (dynamics.scale.std * std).square()


def sums_of_groups():
    """The 3 x 24 matrix whose rows sum a group each."""
    return (torch.arange(24) % 3 == torch.arange(3).unsqueeze(1)).double()


def conditional(mean, variance):
    """Dense mean and covariance of N(mean, diag variance) given that groups of 8 (of 24) sum to 0."""
    sums = sums_of_groups()
    covariance = torch.diag(variance)
    gain = covariance @ sums.T @ torch.linalg.inv(sums @ covariance @ sums.T)
    return mean - gain @ sums @ mean, covariance - gain @ sums @ covariance


@pytest.mark.parametrize("geometry", ["tangent", "logit"])
def test_the_loss_is_the_likelihood_given_that_groups_sum_to_zero(geometry, make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **GAUSSIAN, geometry=geometry, beta=0.0).eval()
    dynamics.scale.update(0.1 * torch.randn(64, 24, dtype=torch.float64, generator=rng(5)))
    t = make_transition(dynamics.geometry)
    loss, s_next = dynamics.loss(t, rng(), need_next=False)
    means, variances = before_condition(dynamics, t)
    basis = torch.linalg.svd(sums_of_groups()).Vh[3:]  # of displacements whose groups sum to 0
    expected = []
    for mean, variance, displacement in zip(means, variances, t.target - t.source, strict=True):
        centre, covariance = conditional(mean, variance)
        density = MultivariateNormal(basis @ centre, basis @ covariance @ basis.T)
        expected.append(-density.log_prob(basis @ displacement) / 24)
    expected = torch.stack(expected)
    torch.testing.assert_close(loss - loss[0], expected - expected[0])  # equal but for a constant
    assert s_next is None
    assert (variances.log() - variances.log().mean()).abs().max() > 0.1  # the spread does depend on the state


def test_nll_weight_multiplies_the_loss(make_dynamics, make_transition):
    plain, weighted = (
        make_dynamics(scrambled=True, **GAUSSIAN, nll_weight=weight)
        .eval()
        .loss(make_transition(), rng(), need_next=False)
        for weight in (1.0, 0.05)
    )
    torch.testing.assert_close(weighted[0], 0.05 * plain[0])


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_beta_weighs_by_the_variance_without_gradient(beta, make_dynamics, make_transition):
    """Per group of 8: sum w nll + w_g log N(0; sum m, sum v), w = sg(std^(2 beta)), w_g = sum v / sum (v / w)."""
    dynamics = make_dynamics(scrambled=True, **GAUSSIAN, beta=beta).eval()
    t = make_transition()
    loss, _ = dynamics.loss(t, rng(), need_next=False)
    _, std = distribution(dynamics, t)
    centre, variance = before_condition(dynamics, t)
    weight = std.detach() ** (2 * beta)
    nll = std.log() + 0.5 * (t.target - t.source - centre).square() / variance
    total = variance @ sums_of_groups().T
    shared = total / ((variance / weight) @ sums_of_groups().T)
    constraint = -0.5 * ((total / (8 * 8 / 7)).log() + (centre @ sums_of_groups().T).square() / total)
    expected = ((weight * nll).sum(-1) + (shared.detach() * constraint).sum(-1)) / 24
    torch.testing.assert_close(loss, expected)
    for got, want in zip(
        torch.autograd.grad(loss.sum(), list(dynamics.parameters())),
        torch.autograd.grad(expected.sum(), list(dynamics.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_no_mean_makes_the_loss_fall_without_bound(beta, make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **GAUSSIAN, beta=beta).eval()
    t = make_transition(batch=1)
    generator = rng(7)
    losses = []
    for size in (0.0, 1e2, 1e4):
        for _ in range(20):
            with torch.no_grad():
                dynamics.network[-1].bias[:24] = size * torch.randn(24, generator=generator, dtype=torch.float64)
                losses.append(dynamics.loss(t, rng(), need_next=False)[0].item())
    assert min(losses) > -10


def test_samples_have_the_conditional_mean_and_covariance(make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **GAUSSIAN).eval()
    dynamics.scale.update(torch.linspace(0.05, 0.5, 24) * torch.randn(256, 24, generator=rng(5)))
    t = make_transition(batch=1)
    rows = 40_000
    with torch.no_grad():
        centre, covariance = conditional(*(x[0] for x in before_condition(dynamics, t)))
        sample = dynamics(*(x.expand(rows, -1) for x in (t.source, t.action, t.task)), rng())
        step = dynamics(t.source, t.action, t.task)[0]
    torch.testing.assert_close(step, t.source[0] + centre)
    assert ((sample.mean(0) - step) / covariance.diag().sqrt()).abs().max() < 5 / math.sqrt(rows)
    torch.testing.assert_close(sample.T.cov(), covariance, rtol=0, atol=0.03 * covariance.abs().max().item())


def test_loud_and_quiet_coordinates_are_both_fitted(make_dynamics, make_transition):
    """Displacements of one group: two coordinates swap .1, the others hardly move (std .001)."""
    true = torch.full((24,), 0.001)
    true[[0, 3]] = 0.1  # both of group 0
    dynamics = make_dynamics(**GAUSSIAN, beta=0.0)
    t = make_transition(batch=2048, dtype=torch.float32)
    groups = sums_of_groups().float()
    draws, variance = true * torch.randn(2048, 24, generator=rng(3)), true.square()
    move = draws - variance * (draws @ groups.T @ groups) / (variance @ groups.T @ groups)
    one = {name: getattr(t, name)[:1].expand(2048, -1) for name in ("source", "action", "task")}
    fixed = replace(t, **one)
    fixed = replace(fixed, target=fixed.source + move)
    head = dynamics.network[-1]
    adam = torch.optim.Adam([head.bias], lr=0.05)
    for _ in range(250):
        adam.zero_grad()
        dynamics.loss(fixed, rng(), need_next=False)[0].mean().backward()
        adam.step()
    with torch.no_grad():
        sample = dynamics(fixed.source, fixed.action, fixed.task, rng(9)) - fixed.source
    torch.testing.assert_close(sample.std(0), move.std(0), rtol=0.08, atol=0)


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
    centre, variance = before_condition(dynamics, t)
    torch.testing.assert_close(centre, dynamics.scale.std * mean)
    excess = (centre @ sums_of_groups().T / (variance @ sums_of_groups().T)) @ sums_of_groups()
    torch.testing.assert_close(dynamics(t.source, t.action, t.task), t.source + centre - variance * excess)


def with_equal_stds(displacement, logstd):
    """The loss at mean 0 and one log-std everywhere: the log-density's 7 of 8 degrees of freedom."""
    return 7 / 8 * logstd + (7 / 16 * (displacement / math.exp(logstd)).square()).mean(-1)


@pytest.mark.parametrize(("push", "bound"), [(-100.0, -3.0), (100.0, 1.0)])
def test_the_log_std_stays_within_its_bounds(push, bound, make_dynamics, make_transition):
    dynamics = make_dynamics(**GAUSSIAN, min_logstd=-3.0, max_logstd=1.0, beta=0.0).eval().double()
    dynamics.network[-1].bias.data[24:] = push
    t = make_transition()
    loss, _ = dynamics.loss(t, rng(), need_next=False)
    torch.testing.assert_close(loss, with_equal_stds(t.target - t.source, bound))


@pytest.mark.parametrize(("low", "high", "start"), [(-5.0, 2.0, 0.0), (-4.0, -2.0, -3.0)])
def test_the_log_std_starts_at_zero_or_else_mid_range(low, high, start, make_dynamics, make_transition):
    dynamics = make_dynamics(**GAUSSIAN, min_logstd=low, max_logstd=high, beta=0.0).eval().double()
    t = make_transition()
    loss, _ = dynamics.loss(t, rng(), need_next=False)
    torch.testing.assert_close(loss, with_equal_stds(t.target - t.source, start))
