"""The world model's loss: its weights, its mask, and what carries gradient."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from flowmbpo.training.model_loss import model_loss

DYNAMICS = {
    "mlp": {"kind": "mlp"},
    "residual": {"kind": "residual", "geometry": "logit"},
    "gaussian": {"kind": "gaussian"},
    "neural-ode": {"kind": "neural_ode", "substeps": 1},
    "flow": {"kind": "flow", "substeps": 1, "endpoint_weight": 1.0, "geometry": "logit"},
    "generative-flow": {"kind": "flow", "mode": "generative", "substeps": 1},
    "jacobian-penalty": {"kind": "residual", "jacobian_penalty": 0.1},
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def counted(make_agent, monkeypatch):
    """A world model whose per-transition losses are given tables of [T, B]."""

    def make(dynamics, reward):
        model = make_agent().world_model
        steps = iter(torch.tensor(dynamics))
        monkeypatch.setattr(model.dynamics, "loss", lambda transition, rng, need_next: (next(steps), transition.source))
        monkeypatch.setattr(model.reward_head, "loss", lambda inputs, reward_: torch.tensor(reward).flatten())
        return model

    return make


def test_total_is_the_hand_computed_one(counted, make_batch, training):
    model = counted([[1.0, 3.0], [5.0, 7.0]], [[2.0, 4.0], [6.0, 8.0]])
    batch = make_batch(horizon=2, width=2)
    loss = model_loss(model, batch, batch.reward, training(rho=0.5, dynamics_weight=4.0), generator())
    assert loss.dynamics.item() == pytest.approx((2.0 + 0.5 * 6.0) / 2)
    assert loss.reward.item() == pytest.approx((3.0 + 0.5 * 7.0) / 2)
    assert loss.total.item() == pytest.approx(4.0 * 2.5 + 3.25 / 2)  # reward_weight 1/H, H = 2


def test_padded_transitions_count_for_nothing(counted, make_batch, training):
    model = counted([[1.0, 3.0], [5.0, 7.0]], [[2.0, 4.0], [6.0, 8.0]])
    batch = make_batch(horizon=2, width=2)
    batch.valid[1, 1] = False
    loss = model_loss(model, batch, batch.reward, training(rho=0.5, reward_weight=1.0), generator())
    assert loss.dynamics.item() == pytest.approx((1.0 + 3.0 + 0.5 * 5.0) / 3)
    assert loss.total.item() == pytest.approx((6.5 + 2.0 + 4.0 + 0.5 * 6.0) / 3)


def test_published_weights_are_16_to_1_at_horizon_16(make_agent, make_batch, training):
    batch = make_batch(horizon=16)
    loss = model_loss(make_agent().world_model, batch, batch.reward, training(horizon=16), generator())
    assert loss.total.item() == pytest.approx((loss.dynamics + loss.reward / 16).item())


@pytest.mark.parametrize("source", ["rollout", "teacher"])
def test_loss_of_the_mlp_is_that_of_its_definition(make_agent, make_batch, training, source):
    agent = make_agent(model={"dynamics": {"kind": "mlp", "units": [16], "source": source}}).double()
    batch = make_batch(dtype=torch.float64)
    loss = model_loss(agent.world_model, batch, batch.reward, training(rho=0.9), generator())
    model, context = agent.world_model, agent.world_model.context(batch.task)
    encoded = [model.encode(obs, context) for obs in batch.obs]
    z, total = encoded[0], 0.0
    for t in range(3):
        z = z if source == "rollout" else encoded[t]
        z_next, reward = model.step(z, batch.action[t], context)
        total += 0.9**t / 3 * (z_next - encoded[t + 1].detach()).square().mean()
        total += 0.9**t / 3 / 3 * (reward - batch.reward[t]).square().mean()
        z = z_next
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-12)
    loss.total.backward()
    found = gradients(model)
    model.zero_grad()
    total.backward()
    for name, expected in gradients(model).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("source", ["rollout", "teacher"])
@pytest.mark.parametrize("kind", DYNAMICS)
def test_values_of_padding_reach_neither_loss_nor_gradient_nor_scale(make_agent, make_batch, training, kind, source):
    def run(noise):
        dynamics = {"units": [16], **DYNAMICS[kind], "source": source}
        model = make_agent(model={"dynamics": dynamics, "termination": {"units": [8]}}).world_model
        batch = make_batch()
        batch.valid[1:, 0] = batch.valid[2:, 1] = False
        batch.obs[2:, 0] += noise
        batch.obs[3:, 1] += noise
        for tensor in (batch.action, batch.reward):
            tensor[~batch.valid] += noise
        batch.terminated[~batch.valid] = noise != 0
        loss = model_loss(model, batch, batch.reward, training(), generator())
        loss.total.backward()
        return loss.total.detach(), gradients(model), dict(model.named_buffers())

    total, grads, buffers = run(0.0)
    other_total, other_grads, other_buffers = run(3.0)
    assert torch.equal(total, other_total)
    assert grads.keys() == other_grads.keys()
    for name, gradient in grads.items():
        torch.testing.assert_close(gradient, other_grads[name], rtol=1e-5, atol=1e-8)
    for name, value in buffers.items():
        assert torch.equal(value, other_buffers[name]), name


@pytest.mark.parametrize("kind", DYNAMICS)
def test_encodings_used_as_targets_carry_no_gradient(make_agent, make_batch, training, kind):
    dynamics = {"units": [16], **DYNAMICS[kind], "source": "rollout"}
    model = make_agent(model={"dynamics": dynamics}).world_model
    batch = make_batch()
    obs = batch.obs.clone().requires_grad_()
    model_loss(model, dataclasses.replace(batch, obs=obs), batch.reward, training(), generator()).total.backward()
    assert torch.count_nonzero(obs.grad[0]) > 0
    assert torch.count_nonzero(obs.grad[1:]) == 0


def test_teacher_encodes_every_source_with_gradient_and_the_last_target_without(make_agent, make_batch, training):
    model = make_agent(model={"dynamics": {"kind": "mlp", "units": [16], "source": "teacher"}}).world_model
    batch = make_batch()
    obs = batch.obs.clone().requires_grad_()
    model_loss(model, dataclasses.replace(batch, obs=obs), batch.reward, training(), generator()).total.backward()
    assert (torch.count_nonzero(obs.grad, dim=(1, 2)) > 0).tolist() == [True, True, True, False]


@pytest.mark.parametrize("source", ["rollout", "teacher"])
def test_termination_head_learns_which_transitions_ended_the_task(make_agent, make_batch, training, source):
    dynamics = {"kind": "mlp", "units": [16], "source": source}
    model = make_agent(model={"dynamics": dynamics, "termination": {"units": [8]}}).world_model
    batch = make_batch()
    batch.terminated[1, 2] = True
    last = model.termination_head[-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 1.0)  # p(terminated) is sigmoid(1) everywhere
    loss = model_loss(model, batch, batch.reward, training(rho=1.0, termination_weight=2.0), generator())
    p = 1 / (1 + math.exp(-1.0))
    expected = -(math.log(p) + 11 * math.log(1 - p)) / 12
    assert loss.termination.item() == pytest.approx(expected, rel=1e-5)
    assert loss.total.item() == pytest.approx((loss.dynamics + loss.reward / 3).item() + 2 * expected, rel=1e-5)
    loss.total.backward()
    assert last.bias.grad.item() == pytest.approx(2 * (p - 1 / 12), rel=1e-5)


def test_padded_action_dimensions_of_a_narrow_task_reach_nothing(make_agent, make_batch, training):
    def run(noise):
        model = make_agent(tasks=2, model={"task_dim": 4}).world_model
        batch = make_batch(tasks=2)
        batch.action[:, 1::2, 1] += noise  # rows 1 and 3 are of the task with one action
        return model_loss(model, batch, batch.reward, training(), generator()).total

    assert torch.equal(run(0.0), run(0.7))


def test_task_embedding_takes_gradient(make_agent, make_batch, training):
    model = make_agent(tasks=2, model={"task_dim": 4}).world_model
    batch = make_batch(tasks=2)
    model_loss(model, batch, batch.reward, training(), generator()).total.backward()
    assert (model.tasks.embeddings.grad.abs().sum(-1) > 0).all()


def test_decoder_reads_normalised_observations_back_from_predicted_latents(make_agent, make_batch, training):
    encoder = {"kind": "mlp", "units": [16], "normalize_steps": 10}
    model = make_agent(model={"encoder": encoder, "decoder": {"units": [16], "weight": 0.5}}).world_model
    batch = make_batch(horizon=2)
    model.observe(5.0 + 3.0 * batch.obs.flatten(0, 1))
    config = training(rho=1.0, dynamics_weight=0.0, reward_weight=0.0)
    loss = model_loss(model, batch, batch.reward, config, generator())
    context = model.context(batch.task)
    first = model.encode(batch.obs[0], context)
    second = model.next(first, batch.action[0], context)
    read = [model.decode(model.latent(state), context) for state in (first, second)]
    errors = [(r - model.normalized(o)).square().mean() for r, o in zip(read, batch.obs, strict=False)]
    assert loss.decoder.item() == pytest.approx((errors[0] + errors[1]).item() / 2, rel=1e-5)
    assert loss.total.item() == pytest.approx(0.5 * loss.decoder.item(), rel=1e-5)


@pytest.mark.parametrize("source", ["rollout", "teacher"])
@pytest.mark.parametrize("shapes", [True, False])
def test_dynamics_loss_shapes_the_encoder_only_where_asked(make_agent, make_batch, training, shapes, source):
    options = {
        "decoder": {"units": [16]},
        "encoder_learns_dynamics": shapes,
        "dynamics": {"kind": "mlp", "source": source},
    }
    model = make_agent(model=options).world_model
    batch = make_batch()
    batch.obs.requires_grad_(True)
    model_loss(model, batch, batch.reward, training(), generator()).dynamics.backward()
    learns = any(p.grad is not None and p.grad.any() for p in model.encoder.parameters())
    assert learns == shapes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_learns_dynamics": False}, "set model.decoder too"),
        (
            {
                "latent_dim": 3,
                "encoder": {"kind": "identity"},
                "dynamics": {"kind": "residual", "geometry": "euclidean"},
                "decoder": {},
            },
            "encoder.kind 'identity' learns nothing",
        ),
    ],
)
def test_a_decoder_that_has_nothing_to_shape_is_refused(make_agent, options, message):
    with pytest.raises(ValueError, match=message):
        make_agent(model=options)
