"""The reward head learns what the environment pays, and passes its slope on to actions."""

import pytest
import torch

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.make import make_env
from flowmbpo.models.reward_normalizer import RewardNormalizer
from flowmbpo.training.updates import actor_objective

HEADS = {"scalar": {"kind": "scalar", "units": [32]}, "two_hot": {"kind": "two_hot", "units": [32]}}


@pytest.mark.parametrize("head", HEADS)
def test_predicted_reward_tracks_the_real_one_and_the_actor_feels_it(make_trainer, make_agent, head):
    env = make_env(TaskConfig(name="toy-pendulum-swingup", num_envs=4))
    model = {"latent_dim": 32, "encoder": {"kind": "mlp", "units": [32]}, "reward": HEADS[head]}
    trainer = make_trainer(
        env=env,
        agent=make_agent(spec=env.spec, model=model, normalization="scale"),
        wm_batch_size=64,
        warmup_model_updates=250,
        model_lr=2e-3,
        reward_weight=1.0,
        random_episodes=2,
    )
    trainer.start()
    agent = trainer.agent
    batch = trainer.replay.sample(512, 1, torch.Generator().manual_seed(1))
    context = agent.world_model.context(batch.task)
    with torch.no_grad():
        z = agent.world_model.latent(agent.world_model.encode(batch.obs[0], context))
        predicted = agent.reward_normalizer.inverse(agent.world_model.reward(z, batch.action[0], context))
    real = batch.reward[0]
    correlation = torch.corrcoef(torch.stack([predicted, real]))[0, 1].item()
    assert correlation > 0.9
    assert predicted.std().item() == pytest.approx(real.std().item(), rel=0.3)
    objective = actor_objective(agent, z, context, trainer.config, torch.Generator().manual_seed(2))
    rewards = objective.imagination.rewards.sum()
    (slope,) = torch.autograd.grad(rewards, agent.actor.mean[-1].weight)
    assert slope.norm().item() > 1e-2


def normalizer(mode, *rewards):
    module = RewardNormalizer(mode)
    for reward in rewards:
        module.update(torch.tensor(reward))
    return module


def test_scaling_keeps_zero_at_zero_and_makes_the_mean_square_one():
    scale = normalizer("scale", [3.0, -4.0], [0.0, 0.0])
    assert scale(torch.zeros(1)).item() == 0.0
    assert scale(torch.tensor(5.0)).item() == pytest.approx(2.0)  # rms 2.5


def test_standardising_removes_mean_and_spread_even_of_one_sign():
    standard = normalizer("standardize", [1.0, 3.0])
    assert standard(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([-1.0, 1.0])
    assert standard(torch.zeros(1)).item() == pytest.approx(-2.0)


@pytest.mark.parametrize("mode", ["scale", "standardize", "none"])
def test_inverse_undoes_every_mode(mode):
    module = normalizer(mode, [1.0, 3.0, -7.5])
    rewards = torch.tensor([-7.5, 0.0, 12.0])
    torch.testing.assert_close(module.inverse(module(rewards)), rewards)


@pytest.mark.parametrize("mode", ["scale", "standardize", "none"])
def test_rewards_that_never_vary_do_not_divide_by_zero(mode):
    module = normalizer(mode, [0.0, 0.0])
    assert torch.isfinite(module(torch.tensor([0.0, 1.0]))).all()


def test_large_rewards_are_not_clipped():
    module = normalizer("scale", [1.0] * 99 + [100.0])
    assert module(torch.tensor(100.0)).item() > 9.0
