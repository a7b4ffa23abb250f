"""The actor's objective and its gradient through imagined rollouts."""

import pytest
import torch
from torch import nn

from flowmbpo.training.updates import actor_objective, frozen

GRIDS = {
    "mlp-gaussian": ({"kind": "mlp", "units": [16]}, {"kind": "gaussian"}),
    "flow-flow": (
        {"kind": "flow", "units": [16], "geometry": "logit", "integrator": "heun", "substeps": 2},
        {"kind": "flow", "substeps": 2, "noise_floor": 0.1},
    ),
    "sampled-gaussian": ({"kind": "gaussian", "units": [16]}, {"kind": "gaussian"}),
}
TERMINATION = {"termination": {"units": [8]}}


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def starts(agent, width=4, tasks=1):
    context = agent.world_model.context(torch.arange(width) % tasks)
    obs = torch.randn(width, 3, generator=generator(1), dtype=next(agent.parameters()).dtype)
    with torch.no_grad():
        return agent.world_model.encode(obs, context), context


def unrolled(agent, state, context, horizon, gamma, *, detach):
    """J of each start, forwards, one step after the other."""
    model, draw = agent.world_model, generator()
    total, discount = 0.0, 1.0
    for _ in range(horizon):
        z = model.latent(state)
        action = agent.actor(z.detach() if detach else z, context, draw)
        reward = model.reward_head(torch.cat([z, context.embedding, action], dim=-1))
        state = model.next(state, action, context, draw)
        total = total + discount * reward
        logit = model.termination_head(torch.cat([model.latent(state), context.embedding], dim=-1))
        discount = discount * gamma * (1 - torch.sigmoid(logit.squeeze(-1)))
    members = agent.critic.network(model.latent(state)).squeeze(-1)
    return total + discount * members.min(0).values


def actor_gradient(agent, loss):
    return torch.autograd.grad(loss, [p for p in agent.actor.parameters() if p.requires_grad])


@pytest.mark.parametrize("mode", ["through", "detached"])
@pytest.mark.parametrize("grid", GRIDS)
def test_gradient_is_that_of_the_unrolled_objective(make_agent, training, grid, mode):
    dynamics, actor = GRIDS[grid]
    agent = make_agent(model=TERMINATION | {"dynamics": dynamics}, actor=actor).double()
    start, context = starts(agent)
    config = training(horizon=4, gamma=0.9, actor_input_gradient=mode)
    objective = actor_objective(agent, start, context, config, generator())
    expected = unrolled(agent, start, context, 4, 0.9, detach=mode == "detached")
    torch.testing.assert_close(objective.returns, expected, rtol=1e-10, atol=1e-10)
    pairs = zip(actor_gradient(agent, objective.loss), actor_gradient(agent, -expected.mean()), strict=True)
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)


def test_detaching_the_actors_input_changes_the_gradient_and_nothing_else(make_agent, training):
    agent = make_agent().double()
    start, context = starts(agent)
    through, detached = (
        actor_objective(agent, start, context, training(actor_input_gradient=mode), generator())
        for mode in ("through", "detached")
    )
    assert torch.equal(through.returns, detached.returns)
    first, second = actor_gradient(agent, through.loss)[0], actor_gradient(agent, detached.loss)[0]
    assert not torch.allclose(first, second, rtol=1e-3)


def test_gradient_agrees_with_finite_differences(make_agent, training):
    agent = make_agent().double()
    start, context = starts(agent)
    config = training()
    weight = agent.actor.mean[0].weight
    (gradient,) = torch.autograd.grad(actor_objective(agent, start, context, config, generator()).loss, weight)
    losses = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            weight[0, 0] += step
            losses.append(actor_objective(agent, start, context, config, generator()).loss.item())
    assert gradient[0, 0].item() == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5)


def constant(network, value):
    """Make a network's last layer answer `value` whatever it is asked."""
    nn.init.zeros_(network[-1].weight)
    nn.init.constant_(network[-1].bias, value)


def constant_agent(make_agent, *, reward, value, **options):
    agent = make_agent(**options)
    constant(agent.world_model.reward_head.network, reward)
    nn.init.zeros_(agent.critic.network.weights[-1])
    nn.init.constant_(agent.critic.network.biases[-1], value)
    return agent


def test_terminal_value_is_discounted_once_per_step(make_agent, training):
    agent = constant_agent(make_agent, reward=0.0, value=2.0)
    returns = actor_objective(agent, *starts(agent), training(horizon=5, gamma=0.5), generator()).returns
    torch.testing.assert_close(returns, torch.full((4,), 2.0 * 0.5**5))


def test_rewards_are_discounted_from_the_first(make_agent, training):
    agent = constant_agent(make_agent, reward=1.0, value=0.0)
    returns = actor_objective(agent, *starts(agent), training(horizon=3, gamma=0.5), generator()).returns
    torch.testing.assert_close(returns, torch.full((4,), 1.75))


def test_each_task_may_have_its_own_discount(make_agent, training):
    agent = constant_agent(make_agent, reward=0.0, value=1.0, tasks=2)
    objective = actor_objective(agent, *starts(agent, tasks=2), training(horizon=2, gamma="task"), generator())
    torch.testing.assert_close(objective.returns, torch.tensor([0.81, 0.25, 0.81, 0.25]))
    torch.testing.assert_close(objective.gamma, torch.tensor([0.9, 0.5, 0.9, 0.5]))


@pytest.mark.parametrize(
    ("logit", "expected"),
    [(50.0, 1.0), (0.0, 1.0 + 0.25 + 0.0625 * 5.0), (-50.0, 1.0 + 0.5 + 0.25 * 5.0)],  # c = 0, 1/2, 1
)
def test_predicted_termination_stops_rewards_and_bootstrap_in_proportion(make_agent, training, logit, expected):
    agent = constant_agent(make_agent, reward=1.0, value=5.0, model=TERMINATION)
    constant(agent.world_model.termination_head, logit)
    objective = actor_objective(agent, *starts(agent), training(horizon=2, gamma=0.5), generator())
    torch.testing.assert_close(objective.returns, torch.full((4,), expected))


def test_noise_replicas_roll_every_start_out_with_fresh_noise(make_agent, training):
    agent = make_agent()
    objective = actor_objective(agent, *starts(agent), training(noise_replicas=3), generator())
    z, actions = objective.imagination.z, objective.imagination.actions
    assert z.shape == (4, 12, 16)
    assert torch.equal(z[0, :4], z[0, 4:8])
    assert not torch.isclose(actions[0, :4], actions[0, 4:8]).any()
    assert objective.gamma.shape == (12,)


def test_actions_of_a_narrow_task_are_masked_in_imagination(make_agent, training):
    agent = make_agent(tasks=2, actor={"noise_floor": 0.5})
    actions = actor_objective(agent, *starts(agent, tasks=2), training(), generator()).imagination.actions
    assert torch.count_nonzero(actions[:, 1::2, 1]) == 0
    assert torch.count_nonzero(actions[:, 0::2, 1]) == actions[:, 0::2, 1].numel()


def test_frozen_gives_gradients_back_even_after_an_error(make_agent):
    agent = make_agent(critic={"target_decay": 0.9})
    before = [p.requires_grad for p in agent.parameters()]
    with pytest.raises(ZeroDivisionError), frozen(agent.world_model, agent.critic, agent.target_critic):
        assert not any(p.requires_grad for p in agent.world_model.parameters())
        raise ZeroDivisionError
    assert [p.requires_grad for p in agent.parameters()] == before
    assert not all(before)  # the target critic never takes gradients
