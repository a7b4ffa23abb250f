"""TD(lambda) targets as the training loop makes them: with an environment, and from recorded observations alone."""

import pytest
import torch

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.make import make_env
from flowmbpo.training import updates
from flowmbpo.training.updates import actor_objective, critic_targets

LAM = 0.95


def double_sum(rewards, values, continues, gamma, lam):
    """(1 - lam) sum_{k<n} lam^(k-1) R_k + lam^(n-1) R_n of every start, term by term, in float64."""
    rewards, values, continues, gamma = (each.double() for each in (rewards, values, continues, gamma))
    horizon = len(rewards)
    targets = torch.zeros_like(rewards)
    for start in range(horizon):
        steps = horizon - start
        weight, earned, returns = torch.ones_like(gamma), torch.zeros_like(gamma), []
        for t in range(start, horizon):
            earned = earned + weight * rewards[t]
            weight = weight * gamma * continues[t]
            returns.append(earned + weight * values[t])
        targets[start] = lam ** (steps - 1) * returns[-1] + sum(
            (1 - lam) * lam**k * segment for k, segment in enumerate(returns[:-1])
        )
    return targets


@pytest.fixture
def recorded(monkeypatch):
    """Arguments and results of every call that an update makes."""
    calls, original = [], updates.td_lambda

    def record(rewards, values, continues, gamma, lam):
        targets = original(rewards, values, continues, gamma, lam)
        calls.append((rewards, values, continues, gamma, lam, targets))
        return targets

    monkeypatch.setattr(updates, "td_lambda", record)
    return calls


def objective_of(agent, config, tasks=1, width=5):
    """What the actor update of recorded observations hands on: no environment, no done."""
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(width, 3, generator=generator, dtype=next(agent.parameters()).dtype)
    context = agent.world_model.context(torch.arange(width) % tasks)
    return actor_objective(agent, agent.world_model.encode(obs, context), context, config, generator)


@pytest.mark.parametrize("lam", [0.0, 0.5, LAM, 1.0])
@pytest.mark.parametrize("ends", [False, True])
def test_offline_targets_are_the_double_sum_over_the_imagined_horizon(lam, ends, make_agent, training):
    agent = make_agent(tasks=2, model={"task_dim": 4, "termination": {"units": [8]} if ends else None}).double()
    config = training(horizon=6, lam=lam, gamma="task")
    objective = objective_of(agent, config, tasks=2)
    imagined = objective.imagination
    with torch.no_grad():
        values = torch.stack([agent.critic.value(z, objective.context) for z in imagined.z[1:]])
    targets = critic_targets(agent, objective, config).target
    # The discounts 0.9 and 0.5 are float32 in the task table: both sides read the same numbers.
    expected = double_sum(imagined.rewards, values, imagined.continues, objective.gamma, lam)
    assert (targets.view(6, -1) - expected).abs().max() < 1e-12
    assert bool((imagined.continues < 1.0).any()) == ends


def test_offline_targets_look_past_one_step(make_agent, training):
    """An offline loop that marks every step as done collapses to r + gamma V: these targets must not be that."""
    agent = make_agent().double()
    config = training(horizon=6, lam=LAM)
    objective = objective_of(agent, config)
    with torch.no_grad():
        values = torch.stack([agent.critic.value(z, objective.context) for z in objective.imagination.z[1:]])
    one_step = objective.imagination.rewards + objective.gamma * values
    targets = critic_targets(agent, objective, config).target
    difference = (targets.view(6, -1) - one_step).abs()
    assert difference[-1].max() < 1e-12  # one step is all that the last state has left
    assert difference[:-1].min(dim=-1).values.min() > 1e-4


def test_offline_targets_at_lambda_one_are_monte_carlo(make_agent, training):
    agent = make_agent().double()
    config = training(horizon=4, lam=1.0)
    objective = objective_of(agent, config)
    with torch.no_grad():
        last = agent.critic.value(objective.imagination.z[-1], objective.context)
    targets = critic_targets(agent, objective, config).target
    gamma = 0.99
    first = sum(gamma**t * r for t, r in enumerate(objective.imagination.rewards)) + gamma**4 * last
    # gamma is 0.99 in float32 (off by 1e-8 of 1): the sum here takes the exact one.
    torch.testing.assert_close(targets.view(4, -1)[0], first.detach(), rtol=1e-6, atol=0)


def test_online_targets_are_of_the_imagined_rollout_whatever_episodes_end_outside(recorded, make_trainer):
    """Real episodes of 25 steps end inside the epochs; a model without a termination head imagines no end."""
    env = make_env(TaskConfig(name="toy-two-goals", num_envs=3))
    assert env.spec.tasks[0].episode_length == 25
    trainer = make_trainer(env=env, agent=None, horizon=5, random_episodes=1, lam=LAM, critic_iterations=1)
    for _ in range(6):  # 30 steps: every copy starts a new episode on the way
        trainer.run_epoch()
    assert len(recorded) == 6
    for rewards, values, continues, gamma, lam, targets in recorded:
        assert rewards.shape == (5, 6)
        assert bool((continues == 1.0).all())
        # float32 targets of order 1 against a float64 sum.
        torch.testing.assert_close(
            targets.double(), double_sum(rewards, values, continues, gamma, lam), rtol=1e-5, atol=1e-5
        )


def test_online_targets_end_where_the_model_expects_the_episode_to(recorded, make_trainer, make_agent):
    env = make_env(TaskConfig(name="toy-two-goals", num_envs=3))
    agent = make_agent(spec=env.spec, model={"termination": {"units": [8]}})
    head = agent.world_model.termination_head
    with torch.no_grad():  # certain of the end: logit 200
        head[-1].weight.zero_()
        head[-1].bias.fill_(200.0)
    trainer = make_trainer(env=env, agent=agent, horizon=5, wm_iterations=1, model_lr=1e-9)
    trainer.run_epoch()
    rewards, _, continues, _, _, targets = recorded[0]
    assert float(continues.detach().max()) < 1e-6
    torch.testing.assert_close(targets, rewards, rtol=0, atol=1e-5)
