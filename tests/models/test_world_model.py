"""Input order, action masks, task embeddings and the termination head."""

import pytest
import torch

from flowmbpo.config.model import ModelConfig
from flowmbpo.config.training import TrainingConfig
from flowmbpo.data.batch import Batch
from flowmbpo.models.world_model import WorldModel
from flowmbpo.nets.simnorm import center, simnorm
from flowmbpo.spec import EnvSpec, TaskInfo
from flowmbpo.training.model_loss import model_loss

KINDS = {
    "mlp": {"kind": "mlp"},
    "residual": {"kind": "residual"},
    "gaussian": {"kind": "gaussian"},
    "neural_ode": {"kind": "neural_ode", "integrator": "euler", "substeps": 1},
    "flow": {"kind": "flow", "integrator": "euler", "substeps": 1},
    "generative": {"kind": "flow", "mode": "generative", "integrator": "euler", "substeps": 1},
}
TASKS = torch.tensor([0, 1, 0, 1])  # 1 is the one of 2 actions in 3


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=rng(seed))


def first_layer(linear, *parts):
    """Give `linear` weights composed of one block per input part, in the order written here; returns the blocks."""
    blocks = [normal(linear.out_features, part.shape[-1], seed=10 + i) for i, part in enumerate(parts)]
    linear.weight.data = torch.cat(blocks, dim=1)
    return sum(part @ block.T for part, block in zip(parts, blocks, strict=True)) + linear.bias


def rest(network, hidden):
    """The network behind its first linear layer."""
    hidden = torch.nn.functional.mish(network[0].norm(hidden))
    for layer in network[1:]:
        hidden = layer(hidden)
    return hidden


@pytest.mark.parametrize("kind", KINDS)
def test_dynamics_read_state_task_action_in_this_order(kind, make_world_model):
    model = make_world_model(scrambled=True, dynamics={**KINDS[kind], "units": (16, 16)})
    context, z, action = model.context(TASKS), simnorm(normal(4, 24), 8), normal(4, 3, seed=1)
    dynamics = model.dynamics
    flow_time = torch.zeros(4, 1, dtype=torch.float64)
    parts = [z, context.embedding, action * context.action_mask]
    if kind == "generative":
        parts += [torch.zeros(4, 24, dtype=torch.float64), flow_time]
    elif kind in ("flow", "neural_ode"):
        parts += [flow_time]
    network = dynamics.network if kind in ("mlp", "residual", "gaussian") else dynamics.velocity.network
    if kind == "gaussian":  # the mean is the first half of its output; with equal spreads it is centred alone
        network[-1].weight.data[24:] = 0.0
        network[-1].bias.data[24:] = 0.0
    out = rest(network, first_layer(network[0].linear, *parts))
    expected = simnorm(out, 8) if kind == "mlp" else z + center(out[:, :24], 8)
    torch.testing.assert_close(model.next(z, action, context), expected)


@pytest.mark.parametrize("reward", [{"kind": "scalar"}, {"kind": "two_hot", "decode": "symlog"}])
def test_the_reward_reads_latent_task_action_in_this_order(reward, make_world_model):
    model = make_world_model(scrambled=True, reward={**reward, "units": (16, 16)})
    context, z, action = model.context(TASKS), simnorm(normal(4, 24), 8), normal(4, 3, seed=1)
    network = model.reward_head.network
    parts = (z, context.embedding, action * context.action_mask)
    out = rest(network, first_layer(network[0].linear, *parts))
    if reward["kind"] == "two_hot":
        expected = (out.softmax(-1) * torch.linspace(-10, 10, 101, dtype=torch.float64)).sum(-1)
    else:
        expected = out[:, 0]
    torch.testing.assert_close(model.reward(z, action, context), expected)


@pytest.mark.parametrize("geometry", ["tangent", "logit"])
def test_the_encoder_reads_observation_then_task_and_ends_in_simnorm(geometry, make_world_model):
    model = make_world_model(
        scrambled=True, encoder={"kind": "mlp", "units": (16,)}, dynamics={"kind": "flow", "geometry": geometry}
    )
    context, obs = model.context(TASKS), normal(4, 5)
    out = rest(model.encoder, first_layer(model.encoder[0].linear, obs, context.embedding))
    state = model.encode(obs, context)
    torch.testing.assert_close(model.latent(state), simnorm(out, 8))
    torch.testing.assert_close(state, simnorm(out, 8) if geometry == "tangent" else center(out, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_action_dimensions_that_a_task_lacks_influence_nothing(kind, make_world_model):
    model = make_world_model(scrambled=True, dynamics=KINDS[kind], termination={"units": (8,)})
    context, z = model.context(TASKS), simnorm(normal(4, 24), 8)
    action = normal(4, 3, seed=1).requires_grad_()
    padded = action.detach().clone()
    padded[:, 2] = 100.0
    next_state, reward = model.step(z, action, context)
    next_padded, reward_padded = model.step(z, padded, context)
    narrow, wide = TASKS == 1, TASKS == 0
    assert torch.equal(next_state[narrow], next_padded[narrow])
    assert torch.equal(reward[narrow], reward_padded[narrow])
    assert not torch.allclose(next_state[wide], next_padded[wide])
    assert not torch.allclose(reward[wide], reward_padded[wide])
    (gradient,) = torch.autograd.grad((next_state.square().sum() + reward.square().sum()), action)
    assert gradient[narrow][:, 2].tolist() == [0.0, 0.0]
    assert (gradient[wide][:, 2] != 0).all()
    assert (gradient[:, :2] != 0).all()


def test_a_step_is_the_next_state_and_the_reward_of_the_present_latent(make_world_model):
    model = make_world_model(scrambled=True, dynamics={"kind": "flow", "geometry": "logit"})
    context, state, action = model.context(TASKS), center(normal(4, 24), 8), normal(4, 3, seed=1)
    s_next, reward = model.step(state, action, context)
    torch.testing.assert_close(s_next, model.next(state, action, context))
    torch.testing.assert_close(reward, model.reward(simnorm(state, 8), action, context))


def test_context_holds_each_task_s_embedding_mask_and_discount(make_world_model):
    model = make_world_model()
    context = model.context(torch.tensor([1, 0]))
    torch.testing.assert_close(context.embedding, model.tasks.embeddings[[1, 0]])
    assert context.action_mask.tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    torch.testing.assert_close(context.discount, torch.tensor([0.99, 0.95]))
    twice = context.repeat(2)
    assert torch.equal(twice.embedding, torch.cat([context.embedding] * 2))
    assert torch.equal(twice.action_mask, torch.cat([context.action_mask] * 2))
    assert torch.equal(twice.discount, torch.cat([context.discount] * 2))


def test_long_embeddings_are_read_at_norm_one_and_stored_as_they_are(make_world_model):
    model = make_world_model()
    long = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.3, 0.4, 0.0, 0.0]])
    model.tasks.embeddings.data.copy_(long)
    embedding = model.context(torch.tensor([0, 1])).embedding
    torch.testing.assert_close(embedding, torch.tensor([[0.6, 0.8, 0.0, 0.0], [0.3, 0.4, 0.0, 0.0]]))
    assert torch.equal(model.tasks.embeddings, long)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["rollout", "teacher"])
def test_the_model_loss_reaches_every_parameter_and_the_embeddings_of_its_tasks_only(kind, source, make_world_model):
    model = make_world_model(
        dynamics={**KINDS[kind], "source": source}, reward={"kind": "two_hot"}, termination={"units": (8,)}
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng()))
    generator = rng()
    batch = Batch(
        obs=torch.randn(4, 8, 5, generator=generator),
        action=torch.randn(3, 8, 3, generator=generator).tanh(),
        reward=torch.randn(3, 8, generator=generator),
        terminated=torch.zeros(3, 8, dtype=torch.bool),
        valid=torch.ones(3, 8, dtype=torch.bool),
        task=torch.ones(8, dtype=torch.long),
    )
    model_loss(model, batch, batch.reward, TrainingConfig(horizon=3), generator).total.backward()
    untouched = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert untouched == []
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    assert model.tasks.embeddings.grad[0].tolist() == [0.0] * 4
    assert (model.tasks.embeddings.grad[1] != 0).all()


def test_a_single_task_needs_no_embedding():
    spec = EnvSpec((TaskInfo("only", "toy", 5, 3, 100, 1, 0.95),))
    model = WorldModel(ModelConfig(latent_dim=24), spec)
    context = model.context(torch.zeros(4, dtype=torch.long))
    assert context.embedding.shape == (4, 0)
    state = model.encode(torch.randn(4, 5), context)
    s_next, reward = model.step(state, torch.randn(4, 3), context)
    assert (s_next.shape, reward.shape) == ((4, 24), (4,))


def test_continuation_is_certain_without_a_head_and_a_probability_with_one(make_world_model):
    plain = make_world_model(scrambled=True)
    z = simnorm(normal(4, 24), 8)
    assert plain.continuation(z, plain.context(TASKS)).tolist() == [1.0] * 4
    model = make_world_model(scrambled=True, termination={"units": (8,)})
    context = model.context(TASKS)
    logit = model.termination_logit(z, context)
    network = model.termination_head
    expected = rest(network, first_layer(network[0].linear, z, context.embedding))[:, 0]
    torch.testing.assert_close(model.termination_logit(z, context), expected)
    assert logit.shape == (4,)
    probability = model.continuation(z, context)
    torch.testing.assert_close(probability, 1 - expected.sigmoid())
    assert (probability < 1).all()
