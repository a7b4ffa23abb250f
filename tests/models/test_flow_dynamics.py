"""Flow matching in the displacement: its loss, where its gradient goes, and the head it needs."""

from dataclasses import replace

import pytest
import torch

from flowmbpo.flows.paths import sample_tau
from flowmbpo.models.dynamics.base import Transition
from flowmbpo.nets.simnorm import center, simnorm

FLOW = {"kind": "flow", "substeps": 2}
SPACES = [("tangent", "latent"), ("logit", "latent"), ("logit", "logit")]
spaces = pytest.mark.parametrize(("geometry", "loss_space"), SPACES)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def gradient_by_hand(dynamics, t, tau, *, through_path, through_target):
    """d loss / d s_s row by row, from Jacobians of v and of the softmax."""
    rows = []
    for s, a, e, target, time in zip(t.source, t.action, t.task, t.target, tau, strict=True):
        s_tau = (1 - time) * s + time * target
        velocity = lambda x, a=a, e=e, time=time: dynamics.velocity((x[None], e[None], a[None]), time[None])[0]  # noqa: E731
        metric = torch.eye(len(s), dtype=s.dtype)  # to the space that the error is measured in
        if dynamics.config.geometry == "logit" and dynamics.config.loss_space == "latent":
            metric = torch.func.jacrev(dynamics.geometry.latent)(s_tau)
        residual = 2.0 / len(s) * metric.T @ metric @ (velocity(s_tau) - (target - s))
        row = torch.zeros_like(s)
        if through_path:
            row = row + (1 - time) * torch.func.jacrev(velocity)(s_tau).T @ residual
        if through_target:
            row = row + residual
        rows.append(row)
    return torch.stack(rows).detach()


@spaces
@pytest.mark.parametrize(("option", "through_path", "through_target"), [("path", True, False), ("full", True, True)])
def test_the_source_receives_the_gradient_that_is_named(
    option, through_path, through_target, geometry, loss_space, make_dynamics, make_transition
):
    dynamics = make_dynamics(scrambled=True, **FLOW, geometry=geometry, loss_space=loss_space, fm_source_grad=option)
    t = make_transition(dynamics.geometry)
    source = t.source.clone().requires_grad_()
    loss, _ = dynamics.loss(replace(t, source=source), rng(), need_next=False)
    (gradient,) = torch.autograd.grad(loss.sum(), source)
    tau = sample_tau(t.target, "uniform", rng())
    expected = gradient_by_hand(dynamics, t, tau, through_path=through_path, through_target=through_target)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(gradient, expected)


@spaces
def test_without_a_source_gradient_matching_trains_the_velocity_alone(
    geometry, loss_space, make_dynamics, make_transition
):
    dynamics = make_dynamics(scrambled=True, **FLOW, geometry=geometry, loss_space=loss_space, fm_source_grad="none")
    t = make_transition(dynamics.geometry)
    source = t.source.clone().requires_grad_()
    loss, _ = dynamics.loss(replace(t, source=source), rng(), need_next=False)
    gradients = torch.autograd.grad(loss.sum(), [source, *dynamics.parameters()], allow_unused=True)
    assert gradients[0] is None
    assert all(gradient.abs().max() > 0 for gradient in gradients[1:])


def test_the_three_options_differ_in_gradient_only(make_dynamics, make_transition):
    t = make_transition()
    losses = [
        make_dynamics(scrambled=True, **FLOW, fm_source_grad=option).loss(t, rng(), need_next=False)[0]
        for option in ("none", "path", "full")
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    torch.testing.assert_close(losses[0], losses[2], rtol=0, atol=0)


@spaces
@pytest.mark.parametrize("tau_sampling", ["uniform", "midpoint"])
def test_the_loss_is_the_mean_square_of_velocity_minus_displacement(
    tau_sampling, geometry, loss_space, make_dynamics, make_transition
):
    dynamics = make_dynamics(
        scrambled=True, **FLOW, geometry=geometry, loss_space=loss_space, tau_sampling=tau_sampling, fm_weight=3.0
    )
    t = make_transition(dynamics.geometry)
    loss, s_next = dynamics.loss(t, rng(), need_next=False)
    tau = (
        torch.full((6, 1), 0.5, dtype=torch.float64)
        if tau_sampling == "midpoint"
        else torch.rand(6, 1, dtype=torch.float64, generator=rng())
    )
    s_tau = (1 - tau) * t.source + tau * t.target
    error = dynamics.velocity((s_tau, t.task, t.action), tau) - (t.target - t.source)
    if (geometry, loss_space) == ("logit", "latent"):
        _, error = torch.func.jvp(dynamics.geometry.latent, (s_tau,), (error,))
    torch.testing.assert_close(loss, 3.0 * error.square().mean(-1))
    assert s_next is None  # integrated only where somebody needs it


@spaces
def test_the_endpoint_term_is_the_integrated_state_s_error(geometry, loss_space, make_dynamics, make_transition):
    options = {"scrambled": True, **FLOW, "geometry": geometry, "loss_space": loss_space}
    plain, both = make_dynamics(**options), make_dynamics(**options, endpoint_weight=2.0)
    t = make_transition(plain.geometry)
    matching, _ = plain.loss(t, rng(), need_next=False)
    total, s_next = both.loss(t, rng(), need_next=False)
    s_next_expected = both(t.source, t.action, t.task)
    space = both.geometry.latent if loss_space == "latent" else lambda s: s
    expected = matching + 2.0 * (space(s_next_expected) - space(t.target)).square().mean(-1)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(s_next, s_next_expected)


def test_endpoint_gradients_reach_the_source_under_every_option(make_dynamics, make_transition):
    t = make_transition()
    for option in ("none", "path", "full"):
        dynamics = make_dynamics(scrambled=True, **FLOW, fm_source_grad=option, fm_weight=0.0, endpoint_weight=1.0)
        source = t.source.clone().requires_grad_()
        loss, _ = dynamics.loss(replace(t, source=source), rng(), need_next=False)
        (gradient,) = torch.autograd.grad(loss.sum(), source)
        end = dynamics(source, t.action, t.task)
        (expected,) = torch.autograd.grad((end - t.target).square().mean(-1).sum(), source)
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("method", ["euler", "heun", "midpoint", "rk4"])
def test_a_constant_velocity_is_integrated_exactly(method, make_dynamics, make_transition):
    dynamics = make_dynamics(**FLOW, integrator=method).double()
    bias = torch.randn(24, dtype=torch.float64, generator=rng())
    dynamics.velocity.network[-1].bias.data.copy_(bias)
    t = make_transition()
    torch.testing.assert_close(dynamics(t.source, t.action, t.task), t.source + center(bias, 8))


@pytest.mark.parametrize("geometry", ["tangent", "logit"])
@pytest.mark.parametrize("tau_features", ["scalar", "fourier"])
def test_velocities_are_signed_and_sum_to_zero_per_group(geometry, tau_features, make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **FLOW, geometry=geometry, tau_features=tau_features)
    t = make_transition(dynamics.geometry)
    early, late = (dynamics.velocity((t.source, t.task, t.action), torch.full((6, 1), x).double()) for x in (0.1, 0.9))
    assert early.unflatten(-1, (8, -1)).sum(-2).abs().max() < 1e-12
    assert early.min() < -0.01 < 0.01 < early.max()
    assert not torch.allclose(early, late)  # flow time does enter


def test_a_simnorm_head_would_leave_the_simplex_and_the_projection_takes_that_away(make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **FLOW)
    t = make_transition()
    defective = simnorm(torch.randn(6, 24, dtype=torch.float64), 8)  # what such a head puts out
    left = (t.source + defective).unflatten(-1, (8, -1)).sum(-2)
    torch.testing.assert_close(left, torch.full_like(left, 2.0))  # one whole unit per step
    dynamics.velocity.network.append(SimNormHead())
    kept = dynamics(t.source, t.action, t.task).unflatten(-1, (8, -1)).sum(-2)
    torch.testing.assert_close(kept, torch.ones_like(kept))


class SimNormHead(torch.nn.Module):
    """The reference fork's last layer."""

    def forward(self, x):
        return simnorm(x, 8)


def test_matching_learns_large_signed_displacements_below_the_simnorm_floor(make_dynamics):
    # Corner to corner: v* has +1 and -1 in a group. A head on the simplex cannot come below (1/8)^2 per coordinate.
    source, target = torch.eye(8), torch.eye(8).roll(1, 0)
    corners = [x.repeat_interleave(3, dim=1) for x in (source, target)]  # interleaved: three equal groups
    transition = Transition(corners[0], torch.zeros(8, 3), torch.zeros(8, 4), corners[1])
    dynamics = make_dynamics(**FLOW, units=(64, 64))
    optimiser = torch.optim.Adam(dynamics.parameters(), lr=3e-3)
    generator = rng()
    for _ in range(300):
        loss, _ = dynamics.loss(transition, generator, need_next=False)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    assert loss.mean().item() < 1 / 64 / 10
    arrived = dynamics(transition.source, transition.action, transition.task)
    torch.testing.assert_close(arrived, transition.target, rtol=0, atol=0.15)


def test_source_noise_is_tangent_and_enters_loss_and_samples_alike(make_dynamics, make_transition):
    dynamics = make_dynamics(**FLOW, source_noise=0.2).double()  # zero head: v = 0
    t = make_transition()
    eps = torch.randn(6, 24, dtype=torch.float64, generator=rng())
    start = t.source + 0.2 * center(eps, 8)
    torch.testing.assert_close(dynamics(t.source, t.action, t.task, rng()), start)
    torch.testing.assert_close(dynamics(t.source, t.action, t.task), t.source)
    loss, _ = dynamics.loss(t, rng(), need_next=False)
    torch.testing.assert_close(loss, (t.target - start).square().mean(-1))
