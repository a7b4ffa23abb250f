"""The actor's horizon: fixed, truncated, or as far as the model is right."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from flowmbpo.models.open_loop import SAMPLES
from flowmbpo.training import imagination as horizon_module
from flowmbpo.training.imagination import k_step_errors, trusted_steps
from flowmbpo.training.updates import actor_objective, critic_targets

LOGIT_FLOW = {"dynamics": {"kind": "flow", "units": [16], "geometry": "logit", "substeps": 2}}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("model", [{}, LOGIT_FLOW])
def test_errors_are_those_of_the_rollout_step_by_step(make_agent, make_batch, model):
    world = make_agent(model=model).double().world_model
    batch = make_batch(horizon=4, width=5, dtype=torch.float64)
    found, trivial = k_step_errors(world, batch, None)  # without noise nothing is drawn
    context = world.context(batch.task)
    state = world.encode(batch.obs[0], context)
    start = world.latent(state)
    for k in range(4):
        state = world.next(state, batch.action[k], context)
        real = world.latent(world.encode(batch.obs[k + 1], context))
        assert found[k].item() == pytest.approx((world.latent(state) - real).square().mean().item(), rel=1e-12)
        assert trivial[k].item() == pytest.approx((start - real).square().mean().item(), rel=1e-12)


@pytest.mark.parametrize("kind", ["gaussian", "generative"])
def test_errors_of_stochastic_dynamics_are_of_their_mean(make_agent, make_batch, kind):
    dynamics = {"kind": "gaussian"} if kind == "gaussian" else {"kind": "flow", "mode": "generative"}
    world = make_agent(model={"dynamics": dynamics | {"units": [16]}}).double().world_model
    batch = make_batch(horizon=2, width=5, dtype=torch.float64)
    found, _ = k_step_errors(world, batch, rng(7))
    noise, context = rng(7), world.context(batch.task)
    state = world.encode(batch.obs[0], context).repeat(SAMPLES, 1)
    for k in range(2):
        state = world.next(state, batch.action[k].repeat(SAMPLES, 1), context.repeat(SAMPLES), noise)
        mean = world.latent(state).view(SAMPLES, 5, -1).mean(0)
        real = world.latent(world.encode(batch.obs[k + 1], context))
        assert found[k].item() == pytest.approx((mean - real).square().mean().item(), rel=1e-12)


def two_point_velocity(inputs, tau):
    """E[d - x_0 | x_tau] of d = +1 (0.7) or -1 (0.3) in every coordinate: what a perfect generative flow has learnt."""
    x = inputs[-1]
    odds = math.log(0.7 / 0.3) + 2.0 * tau * x / (1.0 - tau).square()  # of +1 over -1, given x_tau
    return ((odds / 2.0).tanh() - x) / (1.0 - tau)


def test_the_mean_of_a_perfect_generative_flow_beats_no_change(make_agent, make_batch):
    """Var d = 0.84 of E d^2 = 1 remains, and a sixteenth more; the zero-noise step is a mode and worse than nothing."""
    dynamics = {"kind": "flow", "mode": "generative", "geometry": "euclidean", "units": [8], "substeps": 64}
    dynamics["integrator"] = "euler"
    world = make_agent(model={"latent_dim": 3, "encoder": {"kind": "identity"}, "dynamics": dynamics}).world_model
    world.dynamics.velocity.forward = two_point_velocity
    batch = make_batch(horizon=1, width=2000)
    sign = torch.where(torch.rand(batch.obs[0].shape, generator=rng(1)) < 0.7, 1.0, -1.0)
    batch = replace(batch, obs=torch.stack([batch.obs[0], batch.obs[0] + sign]))
    error, trivial = k_step_errors(world, batch, rng())
    assert (error / trivial).item() == pytest.approx(0.84 * 17 / 16, rel=0.03)
    step = world.next(batch.obs[0], batch.action[0], world.context(batch.task)) - batch.obs[0]
    torch.testing.assert_close(step, torch.ones_like(step), rtol=0, atol=0.02)
    assert (step - sign).square().mean().item() == pytest.approx(0.3 * 4.0, rel=0.06)


def test_windows_that_have_ended_do_not_count(make_agent, make_batch):
    world = make_agent().double().world_model
    batch = make_batch(horizon=3, width=4, dtype=torch.float64)
    valid = batch.valid.clone()
    valid[1:, 2:] = False
    ended = k_step_errors(world, replace(batch, valid=valid), rng())
    first_two = replace(
        batch, obs=batch.obs[:, :2], action=batch.action[:, :2], reward=batch.reward[:, :2],
        terminated=batch.terminated[:, :2], valid=batch.valid[:, :2], task=batch.task[:2],
    )  # fmt: skip
    for whole, part, full in zip(
        ended, k_step_errors(world, first_two, rng()), k_step_errors(world, batch, rng()), strict=True
    ):
        torch.testing.assert_close(whole[1:], part[1:], rtol=1e-12, atol=0.0)
        assert whole[0] == full[0]


def test_a_model_that_predicts_no_change_is_never_trusted(make_agent, make_batch):
    world = make_agent(model={"dynamics": {"kind": "residual", "units": [16]}}).world_model
    torch.nn.init.zeros_(world.dynamics.network[-1].weight)
    torch.nn.init.zeros_(world.dynamics.network[-1].bias)
    batch = make_batch()
    model_error, trivial_error = k_step_errors(world, batch, rng())
    assert torch.equal(model_error, trivial_error)
    assert int(trusted_steps(world, batch, 1.0, rng())) == 0
    assert int(trusted_steps(world, batch, 1.01, rng())) == 3


@pytest.mark.parametrize(
    ("errors", "tolerance", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], 0.5, 4),
        ([0.1, 0.2, 0.6, 0.1], 0.5, 2),  # what comes after the first miss does not count
        ([0.5, 0.1, 0.1, 0.1], 0.5, 0),  # not below
        ([0.1, float("nan"), 0.1, 0.1], 0.5, 1),
        ([0.1, 0.2, 0.6, 0.1], 0.7, 4),
    ],
)
def test_trust_ends_at_the_first_step_that_misses(monkeypatch, errors, tolerance, expected):
    table = (torch.tensor(errors), torch.ones(4))
    monkeypatch.setattr(horizon_module, "k_step_errors", lambda *_: table)
    assert int(trusted_steps(None, None, tolerance, rng())) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actor_horizon": 4}, "actor_horizon 4 exceeds horizon 3"),
        ({"adaptive_horizon": {"minimum": 4}}, "minimum 4 exceeds the longest that the actor may imagine, 3"),
        ({"actor_horizon": 2, "adaptive_horizon": {"minimum": 3}}, "minimum 3 exceeds .* 2"),
        ({"adaptive_horizon": {"tolerance": 0.0}}, "greater than 0"),
    ],
)
def test_horizons_that_cannot_be_are_refused(training, options, message):
    with pytest.raises(ValidationError, match=message):
        training(**options)


def test_truncated_rollout_bootstraps_from_its_own_end(make_agent, training):
    """With H 2 of 3: r_0 + gamma r_1 + gamma^2 V(z_2), and TD(lambda) over those two steps."""
    agent = make_agent().double()
    context = agent.world_model.context(torch.zeros(5, dtype=torch.long))
    start = agent.world_model.encode(torch.randn(5, 3, generator=rng(1), dtype=torch.float64), context)
    config = training(actor_horizon=2, gamma=0.9)
    objective = actor_objective(agent, start, context, config, rng())
    imagined = objective.imagination
    assert imagined.rewards.shape == (2, 5)
    value = agent.critic.value(imagined.z[2], context)
    torch.testing.assert_close(objective.returns, imagined.rewards[0] + 0.9 * imagined.rewards[1] + 0.81 * value)
    z, _, targets, _ = critic_targets(agent, objective, config)
    assert z.shape[0] == targets.shape[0] == 10
    torch.testing.assert_close(targets[5:], (imagined.rewards[1] + 0.9 * value).detach())  # the last step's target


def test_truncating_leaves_collection_and_model_updates_at_the_full_horizon(make_trainer):
    trainer = make_trainer(actor_horizon=1)
    metrics = trainer.run_epoch()
    before = trainer.agent_steps
    trainer.run_epoch()
    assert trainer.agent_steps - before == 4 * 3
    assert metrics["horizon/actor"] == 1.0


def test_full_horizon_says_nothing_of_it(make_trainer):
    assert "horizon/actor" not in make_trainer().run_epoch()


def test_explicit_full_length_is_the_default(make_trainer):
    plain, explicit = make_trainer().run_epoch(), make_trainer(actor_horizon=3).run_epoch()
    assert {key: value for key, value in explicit.items() if key != "horizon/actor"} == plain


@pytest.mark.parametrize(("tolerance", "expected"), [(1e-9, 2.0), (1e9, 3.0)])
def test_adaptive_horizon_lies_between_its_minimum_and_the_longest(make_trainer, tolerance, expected):
    trainer = make_trainer(adaptive_horizon={"tolerance": tolerance, "minimum": 2})
    assert trainer.run_epoch()["horizon/actor"] == expected


def test_adaptive_horizon_is_bounded_by_the_truncated_one(make_trainer):
    trainer = make_trainer(actor_horizon=2, adaptive_horizon={"tolerance": 1e9})
    assert trainer.run_epoch()["horizon/actor"] == 2.0


def test_adaptive_horizon_follows_the_model_on_fresh_windows(make_trainer):
    """The trainer's choice is `trusted_steps` of the windows that its replay generator draws next."""
    trainer = make_trainer(adaptive_horizon={"tolerance": 1.5})
    trainer.run_epoch()
    draws = torch.Generator()
    draws.set_state(trainer.generators["replay"].get_state())
    windows = trainer.replay.sample(8, 3, draws)
    expected = max(1, int(trusted_steps(trainer.agent.world_model, windows, 1.5, rng())))
    noise = trainer.generators["imagination"].get_state()
    assert trainer._actor_horizon() == expected
    assert torch.equal(trainer.generators["imagination"].get_state(), noise)  # a deterministic model draws nothing
    assert torch.equal(trainer.generators["replay"].get_state(), draws.get_state())


def test_a_restored_trainer_adapts_as_the_uninterrupted_one(make_trainer):
    options = {"adaptive_horizon": {"tolerance": 1.1}, "rounds": 3}
    first, second = make_trainer(**options), make_trainer(**options, seed=5)
    first.run_epoch()
    second.replay.load_state_dict(first.replay.state_dict())
    second.load_state_dict(deepcopy(first.state_dict()))  # Adam would share its moments
    for name, generator in first.generators.items():
        second.generators[name].set_state(generator.get_state())
    for _ in range(2):
        assert first.run_epoch() == second.run_epoch()
