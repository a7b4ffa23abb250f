"""The critic ensemble and the agent that holds everything."""

import pytest
import torch

from flowmbpo.config.actors import FlowActorConfig, GaussianActorConfig
from flowmbpo.config.model import CriticConfig, ModelConfig
from flowmbpo.models.agent import Agent
from flowmbpo.models.heads import CriticEnsemble
from flowmbpo.models.task_context import TaskContext

ROWS = 6


def context(task_dim=4):
    return TaskContext(torch.randn(ROWS, task_dim), torch.ones(ROWS, 3), torch.full((ROWS,), 0.99))


def critic(**options):
    torch.manual_seed(0)
    return CriticEnsemble(CriticConfig(units=(16, 8), **options), 24, 4)


@pytest.mark.parametrize("reduction", ["min", "mean"])
def test_the_value_is_the_ensemble_s_minimum_or_mean(reduction):
    ensemble = critic(reduction=reduction)
    z, task = torch.randn(ROWS, 24), context()
    members = ensemble(z, task)
    assert members.shape == (3, ROWS)
    expected = torch.stack([row.min() if reduction == "min" else row.mean() for row in members.T])
    torch.testing.assert_close(ensemble.value(z, task), expected)
    assert len({int(i) for i in members.argmin(0)}) > 1  # the members do disagree


def test_members_start_different_unless_they_start_at_zero():
    z, task = torch.randn(ROWS, 24), context()
    members = critic()(z, task)
    assert not torch.allclose(members[0], members[1])
    assert critic(zero_init=True)(z, task).eq(0.0).all()


def test_the_value_reads_latent_and_task():
    ensemble = critic()
    z, task = torch.randn(ROWS, 24), context()
    network_input = torch.cat([z, task.embedding], dim=-1)
    torch.testing.assert_close(ensemble(z, task), ensemble.network(network_input)[..., 0])


@pytest.mark.parametrize("ensemble", [1, 5])
def test_the_ensemble_has_as_many_members_as_asked(ensemble):
    assert critic(ensemble=ensemble)(torch.randn(ROWS, 24), context()).shape == (ensemble, ROWS)


def agent(spec, *, actor=None, critic=None, geometry="tangent"):
    torch.manual_seed(0)
    model = ModelConfig.model_validate(
        {"latent_dim": 24, "task_dim": 4, "dynamics": {"kind": "flow", "geometry": geometry}}
    )
    return Agent(model, actor or GaussianActorConfig(units=(16,)), critic or CriticConfig(units=(16,)), spec, "scale")


@pytest.mark.parametrize("geometry", ["tangent", "logit"])
@pytest.mark.parametrize("actor", [GaussianActorConfig(units=(16,)), FlowActorConfig(units=(16,))])
def test_acting_is_encoding_then_the_actor_on_the_latent(actor, geometry, spec):
    built = agent(spec, actor=actor, geometry=geometry)
    obs, task = torch.randn(4, 5), torch.tensor([0, 1, 0, 1])
    task_context = built.world_model.context(task)
    z = built.world_model.latent(built.world_model.encode(obs, task_context))
    deterministic = built.act(obs, task)
    torch.testing.assert_close(deterministic, built.actor(z, task_context))
    assert not deterministic.requires_grad
    assert deterministic[1::2, 2].tolist() == [0.0, 0.0]
    sample = built.act(obs, task, torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample, built.actor(z, task_context, torch.Generator().manual_seed(0)))
    assert not torch.allclose(sample, deterministic)


def test_a_target_critic_starts_equal_and_takes_no_gradient(spec):
    assert agent(spec).target_critic is None
    built = agent(spec, critic=CriticConfig(units=(16,), target_decay=0.99))
    pairs = list(zip(built.critic.parameters(), built.target_critic.parameters(), strict=True))
    assert pairs
    for live, target in pairs:
        assert torch.equal(live, target)
        assert live.data_ptr() != target.data_ptr()
        assert live.requires_grad
        assert not target.requires_grad


def test_a_two_hot_critic_learns_values_of_any_size():
    ensemble = critic(bins=51)
    z, task, target = torch.randn(ROWS, 24), context(), torch.tensor([-40.0, -1.0, 0.0, 0.3, 7.0, 150.0])
    optimiser = torch.optim.Adam(ensemble.parameters(), lr=0.01)
    for _ in range(300):
        optimiser.zero_grad()
        ensemble.loss(z, task, target).mean().backward()
        optimiser.step()
    assert ensemble(z, task).shape == ensemble.loss(z, task, target).shape == (3, ROWS)
    torch.testing.assert_close(ensemble(z, task), target.expand(3, -1), rtol=0.05, atol=0.1)


def test_a_scalar_critic_s_loss_is_the_squared_error():
    ensemble = critic()
    z, task, target = torch.randn(ROWS, 24), context(), torch.randn(ROWS)
    assert torch.equal(ensemble.loss(z, task, target), (ensemble(z, task) - target).square())


def test_a_range_without_bins_is_refused():
    with pytest.raises(ValueError, match="set bins"):
        critic(symlog_range=3.0)


def test_actor_climbs_another_value_than_targets_bootstrap_from():
    ensemble = critic(reduction="min", actor_reduction="mean")
    z, task = torch.randn(ROWS, 24), context()
    members = ensemble(z, task)
    assert torch.equal(ensemble.value(z, task), members.amin(0))
    assert torch.equal(ensemble.actor_value(z, task), members.mean(0))
    assert torch.equal(critic().actor_value(z, task), critic().value(z, task))
