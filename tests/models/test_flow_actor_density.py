"""The flow actor's log-density is the discretised policy's own: no approximation."""

import math

import pytest
import torch

from flowmbpo.config.actors import FlowActorConfig
from flowmbpo.models.actors import flow
from flowmbpo.models.build import build_actor
from flowmbpo.models.task_context import TaskContext

CONFIGS = {
    "heun": FlowActorConfig(units=(16, 16)),
    "euler without linear start": FlowActorConfig(units=(16, 16), integrator="euler", substeps=4, linear_start=False),
    "rk4": FlowActorConfig(units=(16, 16), integrator="rk4", substeps=1),
}
every_config = pytest.mark.parametrize("name", CONFIGS)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def make_actor(scramble):
    def make(name, action_dim):
        return scramble(build_actor(CONFIGS[name], 8, 0, action_dim), std=0.25).double()

    return make


def inputs(rows, action_dim, same=False):
    z = torch.rand(1 if same else rows, 8, dtype=torch.float64, generator=rng(8)).expand(rows, -1)
    mask = torch.ones(rows, action_dim, dtype=torch.float64)
    return z, TaskContext(torch.zeros(rows, 0, dtype=torch.float64), mask, torch.ones(rows))


@every_config
def test_the_density_integrates_to_one(name, make_actor):
    actor = make_actor(name, 1)
    action, log_prob = actor.sample_with_log_prob(*inputs(20_000, 1, same=True), rng())
    order = action[:, 0].argsort()
    grid, density = action[order, 0].detach(), log_prob[order].exp().detach()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=2e-3)
    assert density.max() > 1.5 * density.min()


@every_config
def test_the_density_is_the_change_of_variables_by_finite_differences(name, make_actor, monkeypatch):
    actor = make_actor(name, 2)
    z, task = inputs(16, 2)
    action, log_prob = actor.sample_with_log_prob(z, task, rng())
    eps = torch.randn(16, 2, dtype=torch.float64, generator=rng())

    def image(noise):
        monkeypatch.setattr(flow, "standard_normal", lambda like, generator: noise)
        return actor(z, task, rng()).detach()

    torch.testing.assert_close(image(eps), action)
    step, columns = 1e-6, []
    for direction in torch.eye(2, dtype=torch.float64):
        columns.append((image(eps + step * direction) - image(eps - step * direction)) / (2 * step))
    log_volume = torch.stack(columns, dim=-1).det().abs().log()
    log_normal = (-0.5 * eps.square() - 0.5 * math.log(2 * math.pi)).sum(-1)
    torch.testing.assert_close(log_prob, log_normal - log_volume, rtol=0, atol=1e-6)


def test_dimensions_that_a_task_lacks_do_not_count(make_actor):
    actor = make_actor("heun", 2)
    z, task = inputs(16, 2)
    mask = task.action_mask.clone()
    mask[:, 1] = 0.0
    action, log_prob = actor.sample_with_log_prob(z, TaskContext(task.embedding, mask, task.discount), rng())
    assert action[:, 1].eq(0.0).all()
    assert log_prob.isfinite().all()
    # The remaining dimension alone: its density over the sorted samples of one latent integrates to 1.
    z, task = inputs(20_000, 2, same=True)
    mask = task.action_mask.clone()
    mask[:, 1] = 0.0
    action, log_prob = actor.sample_with_log_prob(z, TaskContext(task.embedding, mask, task.discount), rng())
    order = action[:, 0].argsort()
    area = torch.trapezoid(log_prob[order].exp().detach(), action[order, 0].detach())
    assert area.item() == pytest.approx(1.0, abs=2e-3)


def test_samples_with_and_without_density_are_the_same(make_actor):
    actor = make_actor("heun", 2)
    z, task = inputs(16, 2)
    torch.testing.assert_close(actor.sample_with_log_prob(z, task, rng())[0], actor(z, task, rng()))


def test_the_density_s_gradient_reaches_every_parameter_and_is_right(make_actor):
    actor = make_actor("heun", 2)
    z, task = inputs(16, 2)

    def log_prob():
        return actor.sample_with_log_prob(z, task, rng())[1].sum()

    gradients = torch.autograd.grad(log_prob(), list(actor.parameters()))
    for parameter, gradient in zip(actor.parameters(), gradients, strict=True):
        flat, step = parameter.data.view(-1), 1e-6
        index = gradient.abs().argmax()
        before = flat[index].item()
        flat[index] = before + step
        above = log_prob().item()
        flat[index] = before - step
        below = log_prob().item()
        flat[index] = before
        assert gradient.view(-1)[index].item() == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-6)


def test_no_density_is_claimed_where_a_noise_floor_convolves_it():
    actor = build_actor(FlowActorConfig(units=(8,), noise_floor=0.1), 8, 0, 2).double()
    with pytest.raises(ValueError, match="noise_floor"):
        actor.sample_with_log_prob(*inputs(4, 2), rng())
