"""The generative flow learns a distribution of displacements, in each coordinate's own scale."""

from dataclasses import replace

import pytest
import torch

from flowmbpo.config.dynamics import DynamicsDims
from flowmbpo.models.dynamics.base import Transition
from flowmbpo.nets.simnorm import center

GENERATIVE = {"kind": "flow", "mode": "generative"}
SMALL = DynamicsDims(latent_dim=8, simnorm_dim=4, task_dim=0, action_dim=1)
# Two modes at +-MODE with 0.7 : 0.3; coordinates of one group (0, 2, 4, 6) and the other differ up to 60 times in size.
MODE = torch.tensor([0.3, 0.03, -0.2, -0.01, -0.06, -0.015, -0.04, -0.005])
UPPER = 0.7


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def two_clusters(rows, generator):
    sign = torch.where(torch.rand(rows, 1, generator=generator) < UPPER, 1.0, -1.0)
    spread = 0.1 * MODE.abs() * torch.randn(rows, 8, generator=generator)
    source = torch.full((rows, 8), 0.25)
    displacement = sign * MODE + center(spread, 4)
    return Transition(source, torch.zeros(rows, 1), torch.zeros(rows, 0), source + displacement)


@pytest.fixture(scope="module")
def data():
    return two_clusters(8192, rng(1))


def test_samples_have_the_mean_spread_and_both_modes_of_the_data(make_dynamics, data):
    dynamics = make_dynamics(**GENERATIVE, dims=SMALL, units=(64, 64), parity=False, substeps=8, integrator="heun")
    generator = rng(2)
    steps = 800
    optimiser = torch.optim.Adam(dynamics.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, steps)
    for _ in range(steps):
        loss, _ = dynamics.loss(two_clusters(192, generator), generator, need_next=False)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
        schedule.step()
    truth = data.target - data.source
    with torch.no_grad():
        sample = dynamics(data.source, data.action, data.task, rng(3)) - data.source
    std = truth.std(0)
    assert ((sample.mean(0) - truth.mean(0)) / std).abs().max() < 0.1
    torch.testing.assert_close(sample.std(0), std, rtol=0.1, atol=0)
    # Along the mode's direction, in units of the mode: two heaps at +-1 and nothing between.
    place = (sample @ MODE) / MODE.square().sum()
    assert (place > 0).float().mean().item() == pytest.approx(UPPER, abs=0.05)
    assert (place.abs() < 0.5).float().mean() < 0.05
    for heap in (place[place > 0.5], -place[place < -0.5]):
        assert heap.mean().item() == pytest.approx(1.0, abs=0.1)


def test_an_untrained_sample_is_tangent_noise_of_the_displacements_own_scale(make_dynamics, data):
    dynamics = make_dynamics(**GENERATIVE, dims=SMALL, noise_std=0.5)
    dynamics.loss(data, rng(), need_next=False)  # sees the displacements once
    s_d = (data.target - data.source).std(0, correction=0)
    torch.testing.assert_close(dynamics.scale.std, s_d, rtol=1e-4, atol=0)
    eps = torch.randn(len(data.source), 8, generator=rng(4))
    sample = dynamics(data.source, data.action, data.task, rng(4))
    torch.testing.assert_close(sample, data.source + center(s_d * 0.5 * eps, 4))


def test_evaluation_mode_leaves_the_scale_alone(make_dynamics, data):
    dynamics = make_dynamics(**GENERATIVE, dims=SMALL).eval()
    dynamics.loss(data, rng(), need_next=False)
    assert dynamics.scale.std.tolist() == [1.0] * 8


def test_padding_does_not_enter_the_scale(make_dynamics, data):
    dynamics = make_dynamics(**GENERATIVE, dims=SMALL)
    half = torch.arange(len(data.source)) < 4096
    padded = replace(data, target=torch.where(half.unsqueeze(-1), data.target, data.source), valid=half)
    dynamics.loss(padded, rng(), need_next=False)
    expected = (data.target - data.source)[:4096].std(0, correction=0)
    torch.testing.assert_close(dynamics.scale.std, expected, rtol=1e-4, atol=0)


def test_without_a_generator_the_step_is_the_image_of_zero_noise(make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **GENERATIVE, integrator="euler", substeps=1)
    t = make_transition()
    inputs = (t.source, t.task, t.action, torch.zeros_like(t.source))
    velocity = dynamics.velocity(inputs, torch.zeros(6, 1, dtype=torch.float64))
    torch.testing.assert_close(dynamics(t.source, t.action, t.task), t.source + center(velocity, 8))


@pytest.mark.parametrize("geometry", ["tangent", "logit"])
def test_the_loss_is_matching_in_the_scaled_displacement(geometry, make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **GENERATIVE, geometry=geometry, noise_std=0.7, fm_weight=3.0).eval()
    dynamics.scale.update(torch.randn(64, 24, dtype=torch.float64, generator=rng(5)) * 0.1)
    t = make_transition(dynamics.geometry)
    loss, s_next = dynamics.loss(t, rng(), need_next=True)
    replay = rng()
    x_0 = 0.7 * torch.randn(6, 24, dtype=torch.float64, generator=replay)
    tau = torch.rand(6, 1, dtype=torch.float64, generator=replay)
    d = (t.target - t.source) / dynamics.scale.std
    x_tau = (1 - tau) * x_0 + tau * d
    error = dynamics.velocity((t.source, t.task, t.action, x_tau), tau) - (d - x_0)
    torch.testing.assert_close(loss, 3.0 * error.square().mean(-1))
    torch.testing.assert_close(s_next, dynamics(t.source, t.action, t.task, replay))
    assert dynamics.loss(t, rng(), need_next=False)[1] is None


def test_the_source_gets_gradient_through_the_network_s_input_only(make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **GENERATIVE).eval()
    t = make_transition()
    source = t.source.clone().requires_grad_()
    loss, _ = dynamics.loss(replace(t, source=source), rng(), need_next=False)
    (gradient,) = torch.autograd.grad(loss.sum(), source)
    replay = rng()
    x_0 = torch.randn(6, 24, dtype=torch.float64, generator=replay)
    tau = torch.rand(6, 1, dtype=torch.float64, generator=replay)
    d = t.target - t.source
    x_tau = (1 - tau) * x_0 + tau * d
    inputs = (source, t.task, t.action, x_tau)
    (expected,) = torch.autograd.grad((dynamics.velocity(inputs, tau) - (d - x_0)).square().mean(-1).sum(), source)
    torch.testing.assert_close(gradient, expected)
    assert gradient.abs().max() > 1e-4


def test_no_source_gradient_where_none_is_asked(make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **GENERATIVE, fm_source_grad="none")
    t = make_transition()
    source = t.source.clone().requires_grad_()
    loss, _ = dynamics.loss(replace(t, source=source), rng(), need_next=False)
    assert torch.autograd.grad(loss.sum(), source, allow_unused=True) == (None,)


def test_samples_are_reparameterised(make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **GENERATIVE)
    t = make_transition()
    action = t.action.clone().requires_grad_()
    sample = dynamics(t.source, action, t.task, rng())
    (gradient,) = torch.autograd.grad(sample.square().sum(), action)
    assert gradient.abs().max() > 1e-4
