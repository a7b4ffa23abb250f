"""Latents through imagination, the velocity's head, and collapse."""

import pytest
import torch
from torch import nn

from flowmbpo.diagnostics.health.latents import check_latents, spread_share, walk
from flowmbpo.diagnostics.health.velocity import describe, observe_velocity
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.nets.simnorm import simnorm

EFFORT = Effort(resamples=100)


def names(check):
    return {finding.name for finding in check.findings}


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_points_of_a_simplex_are_told_from_displacements():
    points = simnorm(normal(50, 16), 8)
    assert describe(points).on_simplex and describe(points).total == pytest.approx(2.0)
    assert describe(0.1 * points).on_simplex
    assert not describe(points[1:] - points[:-1]).on_simplex
    assert not describe(normal(50, 16).abs()).on_simplex
    assert not describe(torch.zeros(50, 16)).on_simplex  # an untrained head


def test_spread_share_is_the_variance_in_the_mean_square():
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert spread_share(z) == pytest.approx(0.5)
    assert spread_share(torch.ones(10, 4)) == 0.0
    assert spread_share(torch.zeros(10, 4)) == 0.0


@pytest.mark.parametrize("kind", ["flow", "residual", "gaussian", "neural_ode", "mlp"])
@pytest.mark.parametrize("geometry", ["tangent", "logit"])
def test_every_sound_dynamics_keeps_its_sums(kind, geometry, make_subject):
    dynamics = f"model.dynamics={{kind: {kind}, units: [24], geometry: {geometry}}}"
    check = check_latents(make_subject(dynamics, preset="quickstart-baseline"), EFFORT)
    assert check.figures["largest_sum_error"] < 1e-4  # rounding of 50 steps
    assert check.figures["largest_logit_drift"] < 1e-4
    assert len(check.curves["violation"]) == 51


@pytest.mark.parametrize("kind", ["flow", "residual", "neural_ode"])
def test_a_sound_velocity_is_what_its_linear_head_puts_out(kind, make_subject):
    subject = make_subject(f"model.dynamics={{kind: {kind}, units: [24]}}", preset="quickstart-baseline")
    state, context = subject.starts(32, subject.generator("test"))
    action = subject.agent.actor(subject.agent.world_model.latent(state), context, None)
    assert observe_velocity(subject.agent.world_model, state, action, context).deviation < 1e-5


class Mixed(nn.Module):
    """A head with a share of SimNorm behind it."""

    def __init__(self, head, share):
        super().__init__()
        self.head, self.share = head, share

    def forward(self, x):
        out = self.head(x)
        return (1.0 - self.share) * out + self.share * simnorm(out, 8)


@pytest.mark.parametrize("share", [1.0, 0.1])
@pytest.mark.parametrize("geometry", ["tangent", "logit"])
def test_a_simnorm_behind_the_head_is_found_even_under_the_projection(share, geometry, make_subject):
    """Projected, it keeps every sum and never leaves the simplex in logit geometry: only the head betrays it."""
    subject = make_subject(f"model.dynamics.geometry={geometry}")
    velocity = subject.agent.world_model.dynamics.velocity
    velocity.network = Mixed(velocity.network, share)
    check = check_latents(subject, EFFORT)
    assert "simnorm-velocity" in names(check)
    assert check.figures["largest_sum_error"] < 1e-3


@pytest.mark.parametrize("share", [1.0, 0.1])
@pytest.mark.parametrize("geometry", ["tangent", "logit"])
def test_what_every_step_adds_to_every_group_is_found(share, geometry, make_subject, monkeypatch):
    subject = make_subject(f"model.dynamics.geometry={geometry}")
    model = subject.agent.world_model
    step = model.next
    monkeypatch.setattr(model, "next", lambda s, *rest: step(s, *rest) + share * simnorm(s, 8))
    check = check_latents(subject, EFFORT)
    assert {"simnorm-velocity", "latents-leave-simplex"} <= names(check)
    assert check.figures["sum_gained_per_step"] == pytest.approx(share, rel=1e-3)


def test_a_head_that_was_trained_behind_a_simnorm_is_found_without_it(load_small):
    """The checkpoint of a program with that fault, judged by one without it."""
    subject = load_small()
    model = subject.agent.world_model
    batch = subject.replay.sample(256, 1, subject.generator("train"))
    state, context = subject.encode(batch.obs[0], batch.task)
    target, _ = subject.encode(batch.obs[1], batch.task)
    adam = torch.optim.Adam(model.dynamics.parameters(), lr=3e-3)
    with model.dynamics.network[-1].register_forward_hook(lambda module, inputs, output: simnorm(output, 8)):
        for _ in range(300):
            loss = (model.latent(model.next(state, batch.action[0], context)) - model.latent(target)).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    check = check_latents(subject, EFFORT)
    assert check.figures["error_with_simnorm_head"]["effect"] < -0.5
    assert "simnorm-velocity" in names(check)


def test_an_encoder_that_maps_everything_to_one_point_has_collapsed(load_small):
    subject = load_small()
    assert "latent-collapse" not in names(check_latents(subject, EFFORT))
    with torch.no_grad():
        subject.agent.world_model.encoder[-1].norm.weight.mul_(1e-3)
    assert "latent-collapse" in names(check_latents(subject, EFFORT))


def test_imagination_starts_on_the_simplex(load_small):
    subject = load_small()
    walked = walk(subject, subject.agent.world_model.geometry, subject.generator("test"))
    assert max(walked.violation) < 1e-3 and len(walked.sums) == 51


def test_an_observation_that_is_the_state_has_no_simplex_to_leave(make_subject):
    subject = make_subject(
        "model.encoder={kind: identity}",
        "model.latent_dim=3",
        "model.dynamics={kind: residual, units: [24], geometry: euclidean}",
        preset="quickstart-baseline",
    )
    check = check_latents(subject, EFFORT)
    assert "violation" not in check.curves and "spread_share" not in check.figures
    assert not check.findings
