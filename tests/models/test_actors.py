"""Both actors behind one interface: bounds, determinism, masks, noise and its floors."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from flowmbpo.config.actors import FlowActorConfig, GaussianActorConfig
from flowmbpo.config.dynamics import STAGES
from flowmbpo.models.build import build_actor
from flowmbpo.models.task_context import TaskContext

ACTORS = {
    "gaussian": GaussianActorConfig(units=(16, 16)),
    "flow": FlowActorConfig(units=(16, 16)),
    "flow without linear start": FlowActorConfig(units=(16, 16), linear_start=False, integrator="rk4"),
}
every_actor = pytest.mark.parametrize("name", ACTORS)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def context(rows, action_dim=3, narrow=True):
    mask = torch.ones(rows, action_dim, dtype=torch.float64)
    if narrow:
        mask[1::2, -1] = 0.0  # every other row's task has one action dimension fewer
    embedding = 0.1 * torch.randn(rows, 4, dtype=torch.float64, generator=rng(9))
    return TaskContext(embedding, mask, torch.full((rows,), 0.99))


def latents(rows):
    return torch.rand(rows, 24, dtype=torch.float64, generator=rng(8))


@pytest.fixture
def make_actor(scramble):
    def make(config, *, action_dim=3, std=0.3):
        return scramble(build_actor(config, 24, 4, action_dim), std=std).double()

    return make


@every_actor
def test_actions_are_bounded_even_with_huge_weights(name, make_actor):
    actor = make_actor(ACTORS[name], std=20.0)
    for generator in (None, rng()):
        action = actor(latents(64), context(64), generator)
        assert action.shape == (64, 3)
        assert action.abs().max() <= 1.0
        assert action.abs().max() > 0.9


@every_actor
def test_without_a_generator_the_action_is_deterministic_and_with_one_repeatable(name, make_actor):
    actor = make_actor(ACTORS[name])
    act = lambda generator: actor(latents(6), context(6), generator)  # noqa: E731
    assert torch.equal(act(None), act(None))
    assert torch.equal(act(rng(1)), act(rng(1)))
    assert not torch.allclose(act(rng(1)), act(rng(2)))
    assert not torch.allclose(act(rng(1)), act(None))


@every_actor
def test_dimensions_that_a_task_lacks_are_zero_and_change_nothing(name, make_actor):
    actor = make_actor(ACTORS[name])
    z, task = latents(6), context(6)
    for generator in (lambda: None, rng):
        masked = actor(z, task, generator())
        whole = actor(z, TaskContext(task.embedding, torch.ones(6, 3, dtype=torch.float64), task.discount), generator())
        assert masked[1::2, 2].tolist() == [0.0] * 3
        assert torch.equal(masked[0::2], whole[0::2])
        assert (masked[:, :2] != 0).all()


@every_actor
def test_what_an_actor_does_in_a_lacking_dimension_stays_there(name, make_actor):
    actor = make_actor(ACTORS[name])
    z, task = latents(6), context(6)
    before = actor(z, task, rng())
    heads = [actor.mean[-1]] if name == "gaussian" else [actor.velocity[-1], *filter(None, [actor.start])]
    for head in heads:
        head.bias.data[2] += 1.0
        head.weight.data[2] *= 2.0
    (actor.logstd if name == "gaussian" else actor.log_noise_std).data[2] += 0.5
    after = actor(z, task, rng())
    assert torch.equal(after[1::2], before[1::2])
    assert not torch.allclose(after[0::2, 2], before[0::2, 2])


@every_actor
def test_actions_depend_on_latent_and_task_and_pass_gradient_to_both(name, make_actor):
    actor = make_actor(ACTORS[name])
    z, task = latents(6).requires_grad_(), context(6)
    embedding = task.embedding.requires_grad_()
    action = actor(z, TaskContext(embedding, task.action_mask, task.discount), rng())
    gradients = torch.autograd.grad(action.square().sum(), [z, embedding, *actor.parameters()])
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@every_actor
def test_announced_evaluations_are_those_of_the_network(name, make_actor):
    actor = make_actor(ACTORS[name])
    calls = []
    network = actor.mean if name == "gaussian" else actor.velocity
    network.register_forward_hook(lambda *_: calls.append(1))
    actor(latents(6), context(6))
    expected = 1 if name == "gaussian" else ACTORS[name].substeps * STAGES[ACTORS[name].integrator]
    assert len(calls) == actor.nfe == expected


@pytest.mark.parametrize("name", ["gaussian", "flow without linear start"])
def test_the_last_layer_s_scale_starts_actions_near_zero(name):
    torch.manual_seed(0)
    small = build_actor(ACTORS[name].model_copy(update={"last_layer_scale": 1e-6}), 24, 4, 3).double()
    assert small(latents(6), context(6)).abs().max() < 1e-5
    assert build_actor(ACTORS[name], 24, 4, 3).double()(latents(6), context(6)).abs().max() > 1e-2


def spread(config, rows=40_000):
    """Mean and std of the pre-activation for one latent, at the initial weights with a zero head."""
    torch.manual_seed(0)
    actor = build_actor(config.model_copy(update={"last_layer_scale": 0.0}), 24, 4, 3).double()
    task = context(1)
    repeated = TaskContext(*(x.expand(rows, *x.shape[1:]) for x in (task.embedding, task.action_mask, task.discount)))
    sample = actor(latents(1).expand(rows, -1), repeated, rng()).detach().atanh()
    return sample.mean(0), sample.std(0)


@pytest.mark.parametrize("linear_start", [True, False])
def test_both_actors_start_with_the_gaussian_s_initial_spread(linear_start):
    for config in (GaussianActorConfig(units=(8,)), FlowActorConfig(units=(8,), linear_start=linear_start)):
        _, std = spread(config)
        torch.testing.assert_close(std, torch.full_like(std, math.exp(-1)), rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", ["gaussian", "flow"])
def test_the_noise_floor_adds_its_variance_to_samples_only(kind):
    plain = ACTORS[kind]
    floored = plain.model_copy(update={"noise_floor": 0.5})
    _, std = spread(floored)
    expected = math.sqrt(math.exp(-2) + 0.25)
    torch.testing.assert_close(std, torch.full_like(std, expected), rtol=0.02, atol=0)
    torch.manual_seed(0)
    quiet = build_actor(plain, 24, 4, 3).double()
    torch.manual_seed(0)
    loud = build_actor(floored, 24, 4, 3).double()
    assert torch.equal(quiet(latents(6), context(6)), loud(latents(6), context(6)))


def test_a_flow_that_contracts_its_noise_keeps_the_floor(make_actor):
    # u = -50 a in one Euler substep with dt 1/50 would end at 0; here du/da = -1 over one step leaves nothing.
    config = FlowActorConfig(
        units=(1,), parity=False, integrator="euler", substeps=1, linear_start=False, noise_floor=0.3
    )
    actor = build_actor(config, 24, 4, 3).double()
    actor.velocity = Contraction()
    rows = 20_000
    sample = actor(latents(1).expand(rows, -1), context(rows, narrow=False), rng()).atanh()
    torch.testing.assert_close(sample.std(0), torch.full((3,), 0.3, dtype=torch.float64), rtol=0.03, atol=0)
    assert sample.detach().abs().max() > 0.9
    assert actor(latents(1), context(1), None).tolist() == [[0.0, 0.0, 0.0]]


class Contraction(torch.nn.Module):
    """u(a) = -a, for the columns [z 24, task 4, a 3, tau]."""

    def forward(self, inputs):
        return -inputs[:, 28:31]


def test_the_gaussian_mean_reads_latent_then_task(make_actor):
    actor = make_actor(ACTORS["gaussian"])
    z, task = latents(6), context(6)
    expected = actor.mean(torch.cat([z, task.embedding], dim=-1)).tanh() * task.action_mask
    torch.testing.assert_close(actor(z, task), expected)


@pytest.mark.parametrize("linear_start", [True, False])
def test_the_flow_starts_at_its_linear_image_plus_scaled_noise(linear_start, make_actor):
    config = FlowActorConfig(units=(8,), integrator="euler", substeps=1, linear_start=linear_start)
    actor = make_actor(config)
    z, task = latents(6), context(6, narrow=False)
    features = torch.cat([z, task.embedding], dim=-1)
    eps = torch.randn(6, 3, dtype=torch.float64, generator=rng())
    a_0 = actor.log_noise_std.exp() * eps + (actor.start(features) if linear_start else 0.0)
    u = actor.velocity(torch.cat([features, a_0, torch.zeros(6, 1, dtype=torch.float64)], dim=-1))
    torch.testing.assert_close(actor(z, task, rng()), (a_0 + u).tanh())
    assert (actor.start is not None) == linear_start


@pytest.mark.parametrize(
    ("config", "parameter", "floor"),
    [
        (GaussianActorConfig(units=(8,)), "logstd", -1.427),
        (FlowActorConfig(units=(8,)), "log_noise_std", math.log(0.24)),
    ],
)
def test_the_spread_is_brought_back_to_its_floor_and_no_further(config, parameter, floor):
    actor = build_actor(config, 24, 4, 3)
    values = getattr(actor, parameter)
    values.data.copy_(torch.tensor([-5.0, 0.5, -1.0]))
    actor.clamp_()
    torch.testing.assert_close(values.data, torch.tensor([floor, 0.5, -1.0]))


def test_a_flow_without_a_floor_may_lose_its_noise():
    actor = build_actor(FlowActorConfig(units=(8,), min_noise_std=0.0), 24, 4, 3)
    actor.log_noise_std.data.fill_(-20.0)
    actor.clamp_()
    assert actor.log_noise_std.tolist() == [-20.0] * 3


def test_a_fixed_noise_is_no_trained_parameter():
    assert build_actor(FlowActorConfig(units=(8,)), 24, 4, 3).log_noise_std.requires_grad
    assert not build_actor(FlowActorConfig(units=(8,), learn_noise_std=False), 24, 4, 3).log_noise_std.requires_grad


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (FlowActorConfig, {"noise_std": 0.1}, "min_noise_std"),
        (GaussianActorConfig, {"init_logstd": -2.0}, "min_logstd"),
    ],
)
def test_a_spread_that_starts_below_its_floor_is_refused(config, options, message):
    with pytest.raises(ValidationError, match=message):
        config(**options)


@pytest.mark.parametrize("noise_floor", [0.0, 0.4])
def test_gaussian_log_densities_equal_torch_s(noise_floor, make_actor):
    actor = make_actor(GaussianActorConfig(units=(16,), noise_floor=noise_floor))
    z, task = latents(64), context(64)
    action, log_prob = actor.sample_with_log_prob(z, task, rng())
    mean = actor.mean(torch.cat([z, task.embedding], dim=-1))
    std = (actor.logstd.exp() ** 2 + noise_floor**2).sqrt()
    squashed = TransformedDistribution(Normal(mean, std), TanhTransform())
    expected = (squashed.log_prob(action.clamp(-1 + 1e-15, 1 - 1e-15)) * task.action_mask).sum(-1)
    torch.testing.assert_close(log_prob, expected, rtol=1e-7, atol=1e-7)
    assert action[1::2, 2].eq(0.0).all()


def test_gaussian_samples_with_and_without_density_are_the_same(make_actor):
    actor = make_actor(ACTORS["gaussian"])
    z, task = latents(6), context(6)
    torch.testing.assert_close(actor.sample_with_log_prob(z, task, rng())[0], actor(z, task, rng()))
