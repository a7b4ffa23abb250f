"""What one update of the actor, the critic or the model changes, and what it leaves alone."""

import copy
import math

import pytest
import torch

from flowmbpo.models.task_context import TaskContext
from flowmbpo.training.imagination import Imagination
from flowmbpo.training.optimiser import GuardedOptimiser
from flowmbpo.training.returns import td_lambda
from flowmbpo.training.updates import (
    ActorObjective,
    actor_objective,
    critic_targets,
    masked_mean,
    replayed_targets,
    update_actor,
    update_critic,
    update_model,
)


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def optimiser(module, lr=0.01, clip=None):
    return GuardedOptimiser(module, lr=lr, betas=(0.7, 0.95), weight_decay=0.0, clip=clip)


def weights(module):
    return copy.deepcopy(module.state_dict())


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def starts(agent, width=4, tasks=1):
    context = agent.world_model.context(torch.arange(width) % tasks)
    with torch.no_grad():
        return agent.world_model.encode(torch.randn(width, 3, generator=generator(1)), context), context


def test_actor_update_moves_the_actor_alone_and_leaves_no_gradient_behind(make_agent, training):
    agent = make_agent(tasks=2, model={"task_dim": 4, "termination": {"units": [8]}})
    others = {"model": agent.world_model, "critic": agent.critic}
    before, actor = {name: weights(module) for name, module in others.items()}, weights(agent.actor)
    with torch.no_grad():
        start, context = starts(agent, tasks=2)
    result, _ = update_actor(agent, start, context, optimiser(agent.actor), training(), generator())
    assert bool(result.stepped)
    assert not equal(actor, weights(agent.actor))
    for name, module in others.items():
        assert equal(before[name], weights(module))
        assert all(p.grad is None for p in module.parameters())
        assert all(p.requires_grad for p in module.parameters())


def test_actor_loss_is_divided_by_the_running_spread_of_returns(make_agent, training):
    def gradient_norm(normalise):
        agent = make_agent()
        config = training(return_normalization=normalise)
        result, objective = update_actor(agent, *starts(agent), optimiser(agent.actor), config, generator())
        return result.grad_norm.item(), objective.returns.detach().std(correction=0).item()

    plain, spread = gradient_norm(False)
    assert gradient_norm(True)[0] == pytest.approx(plain / spread, rel=1e-4)


@pytest.mark.parametrize("kind", ["gaussian", "flow"])
def test_actor_learns_nothing_from_action_dimensions_that_the_task_lacks(make_agent, training, kind):
    def learnt(nudge):
        agent = make_agent(tasks=2, model={"task_dim": 4}, actor={"kind": kind})
        actor = agent.actor
        heads = [actor.mean] if kind == "gaussian" else [actor.start, actor.velocity]
        last = [[m for m in head.modules() if isinstance(m, torch.nn.Linear)][-1] for head in heads]
        logstd = actor.logstd if kind == "gaussian" else actor.log_noise_std
        with torch.no_grad():
            logstd[1] += nudge
            for layer in last:
                layer.bias[1] += nudge
                layer.weight[1] += nudge
        z, _ = starts(agent)
        narrow = agent.world_model.context(torch.ones(len(z), dtype=torch.long))
        config = training(preactivation_penalty=0.5)
        result, _ = update_actor(agent, z.detach(), narrow, optimiser(actor), config, generator())
        assert all(layer.weight.grad[1].abs().sum() == 0 for layer in last)
        assert logstd.grad[1] == 0
        return result.loss, [parameter.grad.clone() for parameter in actor.parameters()]

    (loss, gradients), (nudged_loss, nudged_gradients) = learnt(0.0), learnt(1.0)
    assert loss == nudged_loss
    assert all(torch.equal(a, b) for a, b in zip(gradients, nudged_gradients, strict=True))


def test_the_preactivation_penalty_weighs_a_narrow_task_like_a_wide_one():
    x, mask = torch.tensor([[4.0, 100.0], [2.0, 6.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert masked_mean(x, mask) == 4.0
    assert masked_mean(x, torch.ones(2, 2)) == x.mean()


def test_model_update_moves_the_model_with_its_task_embedding_and_nothing_else(make_agent, make_batch, training):
    agent = make_agent(tasks=2, model={"task_dim": 4})
    model, actor, critic = weights(agent.world_model), weights(agent.actor), weights(agent.critic)
    update_model(agent, make_batch(tasks=2), optimiser(agent.world_model), training(), generator())
    moved = {name for name, value in weights(agent.world_model).items() if not torch.equal(value, model[name])}
    assert moved == {name for name, _ in agent.world_model.named_parameters()}
    assert "tasks.embeddings" in moved
    assert equal(actor, weights(agent.actor))
    assert equal(critic, weights(agent.critic))


def test_every_parameter_is_in_exactly_one_optimiser(make_agent, make_trainer):
    model = {"task_dim": 4, "termination": {"units": [8]}}
    spec = make_trainer().env.spec
    agent = make_agent(
        spec=spec, model=model, actor={"kind": "flow", "learn_noise_std": True}, critic={"target_decay": 0.9}
    )
    trainer = make_trainer(agent=agent)
    held = [id(p) for optimiser_ in trainer.optimisers.values() for p in optimiser_.parameters]
    learning = {id(p) for p in agent.parameters() if p.requires_grad}
    assert len(held) == len(set(held))
    assert set(held) == learning
    frozen = {name.split(".")[0] for name, p in agent.named_parameters() if not p.requires_grad}
    assert frozen == {"target_critic"}


def critic_case(make_agent, training, seed=9, **options):
    """An update whose critic minibatches are recorded, as the row numbers they held."""
    agent = make_agent(**options)
    config = training(horizon=3, critic_iterations=3, critic_batches=4)
    objective = actor_objective(agent, *starts(agent), config, generator())
    rows = {tuple(z.tolist()): index for index, z in enumerate(objective.imagination.z[:-1].flatten(0, 1))}
    seen = []
    agent.critic.register_forward_pre_hook(
        lambda module, args: seen.append([rows.get(tuple(z)) for z in args[0].tolist()])
    )
    critic = optimiser(agent.critic)
    results = update_critic(agent, objective, critic, config, generator(seed))
    return agent, results, [batch for batch in seen if batch[0] is not None and len(batch) < 12]


def test_every_pass_of_the_critic_covers_every_state_once_in_a_new_order(make_agent, training):
    _, results, seen = critic_case(make_agent, training)
    assert [len(batch) for batch in seen] == [3] * 12
    assert len(results) == 12
    passes = [[row for batch in seen[i : i + 4] for row in batch] for i in (0, 4, 8)]
    for order in passes:
        assert sorted(order) == list(range(12))
        assert order != sorted(order)
    assert passes[0] != passes[1] != passes[2]


def test_critic_shuffle_is_seeded(make_agent, training):
    first, second, other = (critic_case(make_agent, training, seed=seed) for seed in (9, 9, 10))
    assert first[2] == second[2] != other[2]
    assert equal(weights(first[0].critic), weights(second[0].critic))


def test_critic_targets_are_td_lambda_over_the_whole_imagined_horizon(make_agent, training):
    agent = make_agent()
    config = training(horizon=3, gamma=0.9, lam=0.6)
    objective = actor_objective(agent, *starts(agent), config, generator())
    z, _, targets, _ = critic_targets(agent, objective, config)
    imagined = objective.imagination
    values = torch.stack([agent.critic(z_h, objective.context).min(0).values for z_h in imagined.z[1:]])
    expected = td_lambda(imagined.rewards, values, torch.ones_like(values), 0.9, 0.6)
    torch.testing.assert_close(targets.view(3, 4), expected)
    assert torch.equal(z.view(3, 4, -1), imagined.z[:-1])
    assert not targets.requires_grad
    assert not z.requires_grad


def test_critic_fits_fixed_targets(make_agent, training):
    agent = make_agent()
    z = torch.randn(1, 32, 16, generator=generator())
    context = TaskContext(torch.zeros(32, 0), torch.ones(32, 2), torch.ones(32))
    imagined = Imagination(torch.cat([z, z]), torch.zeros(1, 32, 2), torch.full((1, 32), 3.0), torch.zeros(1, 32))
    objective = ActorObjective(torch.zeros(()), torch.zeros(32), imagined, context, torch.ones(32))
    config = training(horizon=1, critic_iterations=150)
    losses = [r.loss.item() for r in update_critic(agent, objective, optimiser(agent.critic), config, generator())]
    assert losses[-1] < 0.01 < 1.0 < losses[0]


def test_target_critic_follows_by_its_decay_after_every_minibatch(make_agent, training):
    agent = make_agent(critic={"target_decay": 0.75})
    before = weights(agent.target_critic)
    config = training(critic_iterations=1, critic_batches=1)
    objective = actor_objective(agent, *starts(agent), config, generator())
    update_critic(agent, objective, optimiser(agent.critic), config, generator())
    after, online = weights(agent.target_critic), weights(agent.critic)
    for name, value in after.items():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * online[name])
        assert not torch.equal(value, before[name])


def test_targets_come_from_the_target_critic_where_there_is_one(make_agent, training):
    agent = make_agent(critic={"target_decay": 0.75})
    config = training(lam=0.0, gamma=1.0)
    objective = actor_objective(agent, *starts(agent), config, generator())
    with torch.no_grad():
        for parameter in agent.target_critic.parameters():
            parameter.zero_()
    targets = critic_targets(agent, objective, config).target
    torch.testing.assert_close(targets.view(3, 4), objective.imagination.rewards.detach())


@pytest.mark.parametrize("clip", [None, 1.0])
def test_gradient_is_clipped_to_the_norm_and_reported_as_it_was(clip):
    parameter = torch.nn.Parameter(torch.zeros(2))
    guarded = GuardedOptimiser(
        torch.nn.ParameterList([parameter]), lr=0.1, betas=(0.7, 0.95), weight_decay=0.0, clip=clip
    )
    norm, stepped = guarded.step((parameter * torch.tensor([3.0, 4.0])).sum())
    assert stepped
    assert norm.item() == pytest.approx(5.0)
    assert parameter.grad.tolist() == pytest.approx([3.0, 4.0] if clip is None else [0.6, 0.8], rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_optimiser_does_not_step_on_a_non_finite_loss_and_goes_on_as_if_it_had_not_been(bad):
    def run(*losses):
        parameter = torch.nn.Parameter(torch.ones(2))
        guarded = GuardedOptimiser(
            torch.nn.ParameterList([parameter]), lr=0.1, betas=(0.7, 0.95), weight_decay=0.0, clip=1.0
        )
        stepped = [guarded.step((parameter * factor).sum())[1] for factor in losses]
        return parameter.detach(), stepped

    clean, _ = run(1.0, 2.0)
    disturbed, stepped = run(1.0, bad, 2.0)
    assert stepped == [True, False, True]
    assert torch.equal(clean, disturbed)


def test_finite_loss_with_a_non_finite_gradient_is_not_stepped_on_either():
    parameter = torch.nn.Parameter(torch.zeros(2))
    guarded = GuardedOptimiser(
        torch.nn.ParameterList([parameter]), lr=0.1, betas=(0.7, 0.95), weight_decay=0.0, clip=None
    )
    _, stepped = guarded.step(parameter.sqrt().sum())  # value 0, slope infinite
    assert not stepped
    assert torch.equal(parameter.detach(), torch.zeros(2))
    assert parameter.grad is None


def test_preactivation_penalty_is_the_mean_square_at_the_start_states(make_agent, training):
    def loss(weight):
        agent = make_agent()
        agent.actor.logstd.data.fill_(-20.0)
        config = training(return_normalization=False, preactivation_penalty=weight)
        start, context = starts(agent)
        with torch.no_grad():
            mean_square = agent.actor.mean(start).square().mean().item()
        return update_actor(agent, start, context, optimiser(agent.actor), config, generator())[
            0
        ].loss.item(), mean_square

    (plain, mean_square), (penalised, _) = loss(0.0), loss(2.0)
    assert penalised - plain == pytest.approx(2.0 * mean_square, rel=1e-4)


class Decaying(torch.nn.Module):
    """A linear layer behind a LayerNorm and an embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Parameter(torch.ones(3, 4))
        self.norm = torch.nn.LayerNorm(4)
        self.linear = torch.nn.Linear(4, 2)


def test_weight_decay_takes_linear_weights_towards_zero_and_nothing_else():
    torch.manual_seed(0)
    module = Decaying()
    guarded = GuardedOptimiser(module, lr=0.01, betas=(0.9, 0.999), weight_decay=3e-4, clip=1.0)
    before = weights(module)
    for _ in range(100):
        guarded.step(0.0 * sum(parameter.sum() for parameter in module.parameters()))  # a gradient of 0 everywhere
    after = weights(module)
    assert after["linear.weight"].abs().max() < 0.5 * before["linear.weight"].abs().max()
    assert all(torch.equal(before[name], after[name]) for name in before if name != "linear.weight")


def test_weight_decay_is_that_of_torch_s_coupled_adam():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 1, bias=False) for _ in range(3)]
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    x = torch.randn(64, 8, generator=generator())
    y = x @ torch.ones(8, 1)
    coupled = torch.optim.Adam(layers[0].parameters(), lr=0.01, betas=(0.9, 0.999), weight_decay=0.1)
    ours, plain = (
        GuardedOptimiser(layer, lr=0.01, betas=(0.9, 0.999), weight_decay=decay, clip=None)
        for layer, decay in zip(layers[1:], (0.1, 0.0), strict=True)
    )
    for _ in range(300):
        coupled.zero_grad()
        (layers[0](x) - y).square().mean().backward()
        coupled.step()
        for layer, guarded in zip(layers[1:], (ours, plain), strict=True):
            guarded.step((layer(x) - y).square().mean())
    torch.testing.assert_close(layers[1].weight, layers[0].weight)
    assert layers[1].weight.norm() < 0.97 * layers[2].weight.norm()


def test_each_minibatch_of_the_critic_meets_its_own_targets(make_agent, training):
    agent = make_agent()
    start, context = starts(agent, width=6)
    config = training(critic_iterations=1, critic_batches=3)
    objective = actor_objective(agent, start, context, config, generator())
    z, every, targets, _ = critic_targets(agent, objective, config)
    results = update_critic(agent, objective, optimiser(agent.critic, lr=0.0), config, generator(7))
    order = torch.randperm(len(targets), generator=generator(7))
    expected = [(agent.critic(z[rows], every.rows(rows)) - targets[rows]).square().mean() for rows in order.chunk(3)]
    torch.testing.assert_close(torch.stack([result.loss for result in results]), torch.stack(expected))


def test_every_member_of_the_critic_learns(make_agent, training):
    agent = make_agent(critic={"ensemble": 3})
    start, context = starts(agent)
    before = weights(agent.critic)
    objective = actor_objective(agent, start, context, training(), generator())
    update_critic(agent, objective, optimiser(agent.critic), training(), generator())
    for name, value in agent.critic.state_dict().items():
        assert ((value - before[name]).flatten(1).abs().amax(1) > 0).all(), name


def test_the_actor_bootstraps_from_the_online_critic(make_agent, training):
    agent = make_agent(critic={"target_decay": 0.9})
    start, context = starts(agent)
    online = actor_objective(agent, start, context, training(), generator()).loss
    for parameter in agent.target_critic.parameters():
        parameter.data.add_(10.0)
    assert torch.equal(actor_objective(agent, start, context, training(), generator()).loss, online)


@pytest.mark.parametrize(
    ("kind", "name", "floor"), [("gaussian", "logstd", -1.427), ("flow", "log_noise_std", math.log(0.24))]
)
def test_an_update_ends_no_lower_than_the_floor_of_the_std(kind, name, floor, make_agent, training):
    agent = make_agent(actor={"kind": kind})
    getattr(agent.actor, name).data.fill_(floor - 3.0)
    start, context = starts(agent)
    update_actor(agent, start, context, optimiser(agent.actor, lr=1e-4), training(), generator())
    assert getattr(agent.actor, name).min().item() == pytest.approx(floor, abs=1e-6)


@pytest.mark.parametrize("normalization", ["none", "standardize"])
def test_replayed_targets_are_td_lambda_of_real_rewards(make_agent, training, make_batch, normalization):
    """One window is whole, one ends at a time limit after 2 steps, one terminates after 1."""
    agent = make_agent(critic={"target_decay": 0.75}, normalization=normalization)
    agent.reward_normalizer.update(torch.tensor([4.0, 6.0]))
    batch = make_batch(horizon=3, width=3)
    batch.valid[2:, 1] = False
    batch.valid[1:, 2] = False
    batch.terminated[0, 2] = True
    batch.reward[~batch.valid] = 0.0
    batch.obs[3, 1] = batch.obs[2, 1]
    batch.obs[2:, 2] = batch.obs[1, 2]
    gamma, lam = 0.9, 0.6
    z, context, targets, weight = replayed_targets(agent, batch, training(gamma=gamma, lam=lam))
    values = torch.stack(
        [
            agent.target_critic.value(obs, agent.world_model.context(batch.task))
            for obs in [
                agent.world_model.latent(agent.world_model.encode(o, agent.world_model.context(batch.task)))
                for o in batch.obs
            ]
        ]
    ).tolist()
    r = agent.reward_normalizer(batch.reward).tolist()  # padding, whose reward is 0, would count

    def mix(value, target):
        return (1 - lam) * value + lam * target

    whole_2 = r[2][0] + gamma * values[3][0]
    whole_1 = r[1][0] + gamma * mix(values[2][0], whole_2)
    whole_0 = r[0][0] + gamma * mix(values[1][0], whole_1)
    cut_1 = r[1][1] + gamma * values[2][1]
    cut_0 = r[0][1] + gamma * mix(values[1][1], cut_1)
    expected = [whole_0, cut_0, r[0][2], whole_1, cut_1, whole_2]
    assert weight.tolist() == batch.valid.flatten().tolist()
    assert targets[weight > 0].tolist() == pytest.approx(expected, rel=1e-4)
    assert len(z) == len(context.embedding) == 9
    assert not z.requires_grad
    assert not targets.requires_grad


def test_critic_learns_replayed_states_by_their_weight(make_agent, training, make_batch):
    def change(weight):
        agent = make_agent()
        config = training(critic_replay=weight, critic_iterations=1, critic_batches=1)
        objective = actor_objective(agent, *starts(agent), config, generator())
        (result,) = update_critic(
            agent, objective, optimiser(agent.critic), config, generator(), make_batch() if weight else None
        )
        return result.loss.item()

    assert change(2.0) - change(0.0) == pytest.approx(2.0 * (change(1.0) - change(0.0)), rel=1e-3)
    assert change(1.0) > change(0.0)


def test_replayed_states_of_any_number_go_into_every_minibatch(make_agent, training, make_batch):
    agent, batch = make_agent(), make_batch(horizon=3, width=4)
    batch.valid[1:, :3] = False  # 6 states for 5 minibatches of 18 imagined ones
    config = training(critic_replay=1.0, critic_iterations=1, critic_batches=5)
    objective = actor_objective(agent, *starts(agent, width=6), config, generator())
    results = update_critic(agent, objective, optimiser(agent.critic), config, generator(), batch)
    assert len(results) == 5
    assert all(math.isfinite(result.loss.item()) for result in results)
