"""Collecting: closed loop on real observations, random episodes, bookkeeping."""

import copy
from dataclasses import replace

import pytest
import torch

from flowmbpo.config.task import TaskConfig
from flowmbpo.config.training import TrainingConfig
from flowmbpo.envs.make import make_env
from flowmbpo.training.collector import Collector, action_figures

LENGTH = make_env(TaskConfig(name="toy-pendulum-swingup", num_envs=1)).spec.tasks[0].episode_length


@pytest.fixture
def spied(make_trainer, monkeypatch):
    """A started trainer, and the list of (observations acted on, actions, step) from then on."""

    def make(**changes):
        env = make_env(TaskConfig(name="toy-pendulum-swingup", num_envs=4))
        seen = []
        step = env.step

        def spy(action):
            result = step(action)
            seen.append((action, result))
            return result

        monkeypatch.setattr(env, "step", spy)
        return make_trainer(env=env, **changes), seen

    return make


def test_environment_gets_exactly_what_the_agent_does_on_real_observations(spied):
    trainer, seen = spied(horizon=5)
    trainer.start()
    seen.clear()
    agent = copy.deepcopy(trainer.agent)
    exploration = torch.Generator()
    exploration.set_state(trainer.generators["exploration"].get_state())
    obs = trainer.obs
    trainer.run_epoch()
    assert len(seen) == 5
    for action, step in seen:
        assert torch.equal(action, agent.act(obs, trainer.task_ids, exploration))
        obs = step.obs
    assert torch.equal(trainer.obs, obs)


def test_policy_acts_on_the_new_episode_once_one_has_ended(spied):
    trainer, seen = spied(horizon=LENGTH + 3, random_episodes=0)
    trainer.collector.start(trainer.agent)
    obs, exploration = trainer.obs, torch.Generator()
    exploration.set_state(trainer.generators["exploration"].get_state())
    trainer.collector.collect(trainer.agent, 0)
    for action, step in seen:
        assert torch.equal(action, trainer.agent.act(obs, trainer.task_ids, exploration))
        obs = step.obs
    assert any(step.done.all() for _, step in seen)


def test_a_saved_state_holds_the_returns_of_running_episodes(spied):
    trainer, seen = spied(horizon=5, random_episodes=0)
    trainer.collector.start(trainer.agent)
    trainer.collector.collect(trainer.agent, 0)
    earned = torch.stack([step.reward for _, step in seen]).sum(0)
    resumed, _ = spied(random_episodes=0)
    resumed.collector.load_state_dict(trainer.collector.state_dict())
    torch.testing.assert_close(resumed.running_return, earned)
    assert earned.abs().min() > 0


def test_a_frozen_model_keeps_the_scale_of_its_rewards(spied):
    trainer, _ = spied(learn="policy", random_episodes=1)
    moments = trainer.agent.reward_normalizer.moments
    moments.update(torch.tensor([3.0, 4.0]))
    before = copy.deepcopy(moments.state_dict())
    trainer.run_epoch()
    assert all(torch.equal(value, before[name]) for name, value in moments.state_dict().items())


def test_what_happened_is_what_is_stored(spied):
    trainer, seen = spied(random_episodes=0)
    trainer.run_epoch()
    assert trainer.replay.num_transitions == 3 * 4 == trainer.agent_steps
    for row, (action, step) in enumerate(seen):
        assert torch.equal(trainer.replay.action[row], action)
        assert torch.equal(trainer.replay.reward[row], step.reward)
        assert torch.equal(trainer.replay.obs[row + 1], step.final_obs)


def test_environment_steps_count_the_action_repeat(spied):
    trainer, seen = spied(random_episodes=0)
    env = trainer.env
    env.spec = replace(env.spec, tasks=(replace(env.spec.tasks[0], action_repeat=3),))
    collector = Collector(
        env, trainer.replay, trainer.config, seed=0, generator=torch.Generator(), dump=lambda name, content: None
    )
    collector.start(trainer.agent)
    collector.collect(trainer.agent, epoch=0)
    assert (collector.agent_steps, collector.env_steps) == (4 * len(seen), 3 * 4 * len(seen))


@pytest.mark.parametrize("episodes", [0, 1, 2])
def test_every_copy_finishes_its_random_episodes_first(spied, episodes):
    trainer, seen = spied(random_episodes=episodes, warmup_model_updates=7 if episodes else 0)
    trainer.start()
    assert len(seen) == episodes * LENGTH
    assert trainer.agent_steps == 4 * episodes * LENGTH
    assert trainer.updates == (7 if episodes else 0)  # nothing to learn from before the first step
    if episodes:
        actions = torch.stack([action for action, _ in seen])
        assert actions.abs().max() <= 1.0
        assert abs(actions.mean().item()) < 0.1
        assert actions.std().item() == pytest.approx(3**-0.5, abs=0.05)


def test_training_return_is_that_of_finished_episodes(spied):
    trainer, seen = spied(random_episodes=1)
    metrics = trainer.run_epoch()
    returns = torch.stack([step.reward for _, step in seen[:LENGTH]]).sum(0)
    assert metrics["train/return_mean"] == pytest.approx(returns.mean().item(), rel=1e-5)


def test_reward_scale_sees_every_collected_reward_once(spied):
    trainer, seen = spied(random_episodes=1)
    trainer.run_epoch()
    rewards = torch.stack([step.reward for _, step in seen])
    assert trainer.agent.reward_normalizer.moments.count.item() == rewards.numel()
    scale = trainer.agent.reward_normalizer.inverse(torch.ones(()))
    torch.testing.assert_close(scale, rewards.square().mean().sqrt())


def test_learning_rates_fall_linearly_over_the_epochs(make_trainer):
    trainer = make_trainer(epochs=4, model_lr=5e-4, actor_lr=4.1e-4, final_lr=1e-5)
    rates = [trainer.run_epoch() for _ in range(4)]
    assert [rate["lr/actor"] for rate in rates] == pytest.approx([4.1e-4, 3.1e-4, 2.1e-4, 1.1e-4])
    assert trainer.optimisers["actor"].adam.param_groups[0]["lr"] == pytest.approx(1.1e-4)
    assert rates[0]["lr/model"] == pytest.approx(5e-4)


def test_updates_per_epoch_are_those_of_the_config(make_trainer):
    trainer = make_trainer(rounds=3, wm_iterations=2, critic_iterations=2, critic_batches=2, random_episodes=0)
    trainer.run_epoch()
    assert trainer.updates == 3 * (2 + 1 + 2 * 2)


def test_epoch_reports_every_loss_norm_and_action_figure(make_trainer):
    metrics = make_trainer().run_epoch()
    parts = {f"grad_norm/{part}" for part in ("model", "actor", "critic")}
    parts |= {f"loss/{part}" for part in ("dynamics", "reward", "actor", "critic")}
    assert parts | {"actions/std", "actions/saturation", "nonfinite/count", "train/return_mean"} <= metrics.keys()
    assert all(isinstance(value, float) for value in metrics.values())


def test_action_figures_count_the_dimensions_that_a_copys_task_has():
    taken = torch.rand(5, 4, 3) * 2 - 1
    every = action_figures(taken, torch.ones(4, 3))
    assert every["actions/std"] == float(taken.std(dim=(0, 1)).mean())
    taken[:, 0, 0], taken[:, 1:, 0] = 1.0, 0.5
    mask = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    taken *= mask
    spread = (taken[:, :, 0].std() + taken[:, 1:, 1].std() + taken[:, 2:, 2].std()) / 3
    figures = action_figures(taken, mask)
    assert figures["actions/std"] == pytest.approx(float(spread))
    assert figures["actions/saturation"] == pytest.approx(5 / 45 + float((taken[..., 1:].abs() > 0.99).sum()) / 45)
    assert action_figures(taken[:1, 3:], torch.ones(1, 3))["actions/std"] == 0.0


def test_exploration_noise_is_added_to_the_policys_action_and_clipped(spied):
    trainer, seen = spied(horizon=60, exploration_noise=0.4, random_episodes=0)
    trainer.run_epoch()
    quiet, seen_quiet = spied(horizon=60, random_episodes=0)
    quiet.run_epoch()
    noisy = torch.stack([action for action, _ in seen])
    plain = torch.stack([action for action, _ in seen_quiet])
    assert noisy.abs().max() <= 1.0
    assert noisy.std().item() == pytest.approx((plain.std().item() ** 2 + 0.4**2) ** 0.5, rel=0.25)


def test_exploration_noise_is_added_to_real_actions_alone_and_clipped(spied):
    trainer, seen = spied(horizon=80, exploration_noise=0.5, random_episodes=0)
    trainer.agent.actor.logstd.data.fill_(-20.0)
    agent, obs = copy.deepcopy(trainer.agent), trainer.env.reset(0)
    trainer.run_epoch()
    actions = torch.stack([action for action, _ in seen])
    states = torch.stack([obs, *(step.obs for _, step in seen[:-1])])
    mean = torch.stack([agent.act(state, trainer.task_ids) for state in states])
    noise = (actions - mean)[actions.abs() < 1.0]
    assert actions.abs().max() == 1.0
    assert noise.numel() > 100
    assert 0.2 < noise.std().item() < 0.55


def test_warm_up_without_random_episodes_is_refused_rather_than_left_out():
    with pytest.raises(ValueError, match="warmup_model_updates needs data"):
        TrainingConfig(random_episodes=0, warmup_model_updates=5)


def test_updates_per_step_keep_up_with_every_step_of_all_environments(make_trainer):
    trainer = make_trainer(num_envs=3, updates_per_step=0.5, horizon=5, random_episodes=0)
    seen = []

    def after_step(agent_steps):
        trainer.learner.keep_up(agent_steps)
        seen.append(trainer.updates)

    trainer.start()
    trainer.collector.collect(trainer.agent, 0, after_step)
    each = 2 + 1 + 2 * 2  # model, actor, critic updates of a round
    assert seen == [rounds * each for rounds in (1, 3, 4, 6, 7)]
    metrics = trainer.learner.update()
    assert trainer.updates == 7 * each
    assert metrics["loss/critic"] > 0.0
    saved = trainer.learner.state_dict()
    assert saved["due"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "offline", "updates_per_step": 1.0}, "an offline run collects none: use rounds"),
        ({"rounds": 2, "updates_per_step": 1.0}, "rounds and updates_per_step both say how often to update"),
    ],
)
def test_an_update_ratio_that_does_not_fit_is_refused(options, message, training):
    with pytest.raises(ValueError, match=message):
        training(**options)


@pytest.mark.parametrize("policy_starts", [False, True])
def test_stored_actions_are_zero_where_the_task_has_none(make_trainer, policy_starts):
    tasks = ["toy-lqr", "toy-pendulum-swingup"]  # 2 and 1 action dimensions
    env = make_env(TaskConfig(name=None, set="toys", tasks=tasks, num_envs=2))
    trainer = make_trainer(env=env, exploration_noise=0.3, random_episodes=1, horizon=2)
    trainer.collector.policy_starts = policy_starts
    trainer.collector.start(trainer.agent)
    trainer.collector.collect(trainer.agent, 0)
    narrow = [env.spec.tasks[task].action_dim == 1 for task in env.task_ids.tolist()].index(True)
    stored = trainer.replay.action[: int(trainer.replay.head.max()) + 1]
    assert stored[:, narrow, 0].abs().sum() > 0.0
    assert stored[:, narrow, 1].eq(0.0).all()
    assert stored[:, 1 - narrow, 1].abs().sum() > 0.0
