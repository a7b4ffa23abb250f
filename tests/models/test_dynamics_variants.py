"""What holds for every dynamics in every geometry: shapes, identity at the start, and staying on the simplex."""

from dataclasses import replace

import pytest
import torch

from flowmbpo.config.dynamics import STAGES
from flowmbpo.config.training import TrainingConfig
from flowmbpo.data.batch import Batch
from flowmbpo.flows.simplex import simplex_violation
from flowmbpo.training.model_loss import model_loss

KINDS = {
    "mlp": {"kind": "mlp"},
    "residual": {"kind": "residual"},
    "gaussian": {"kind": "gaussian"},
    "neural_ode": {"kind": "neural_ode", "substeps": 2},
    "flow": {"kind": "flow", "substeps": 2, "endpoint_weight": 1.0},
    "generative": {"kind": "flow", "mode": "generative", "substeps": 2},
}
GEOMETRIES = {
    "tangent": {"geometry": "tangent"},
    "retracted": {"geometry": "tangent", "retraction": "project"},
    "logit": {"geometry": "logit"},
}
IDENTITY = ("residual", "gaussian", "neural_ode", "flow", "generative")
# An MLP's SimNorm output is on the simplex already: it takes no retraction (test_options.py).
VARIANTS = [(kind, geometry) for geometry in GEOMETRIES for kind in KINDS if (kind, geometry) != ("mlp", "retracted")]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_variant = pytest.mark.parametrize(("kind", "geometry"), VARIANTS)


def options(kind, geometry, **more):
    return {**KINDS[kind], **GEOMETRIES[geometry], **more}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def far_batch(spec, horizon=3, width=12, seed=0):
    """Observations, actions and rewards without any sense."""
    generator = rng(seed)
    task = torch.arange(width) % len(spec.tasks)
    return Batch(
        obs=10.0 * torch.randn(horizon + 1, width, spec.obs_dim, generator=generator),
        action=torch.rand(horizon, width, spec.action_dim, generator=generator) * 2 - 1,
        reward=10.0 * torch.randn(horizon, width, generator=generator),
        terminated=torch.zeros(horizon, width, dtype=torch.bool),
        valid=torch.ones(horizon, width, dtype=torch.bool),
        task=task,
    )


def group_sums(z, group=8):
    return z.unflatten(-1, (group, -1)).sum(-2)


@every_variant
def test_a_step_and_its_loss_have_the_batch_s_shapes(kind, geometry, make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **options(kind, geometry))
    transition = make_transition(dynamics.geometry)
    assert dynamics(transition.source, transition.action, transition.task, rng()).shape == (6, 24)
    loss, s_next = dynamics.loss(transition, rng(), need_next=True)
    assert loss.shape == (6,)
    assert loss.isfinite().all()
    assert s_next.shape == (6, 24)


@every_variant
def test_rows_do_not_see_each_other(kind, geometry, make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **options(kind, geometry))
    t = make_transition(dynamics.geometry)
    together = dynamics(t.source, t.action, t.task)
    alone = torch.cat([dynamics(t.source[i : i + 1], t.action[i : i + 1], t.task[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("kind", IDENTITY)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_an_untrained_variant_is_the_identity(kind, geometry, make_dynamics, make_transition):
    dynamics = make_dynamics(**options(kind, geometry))
    t = make_transition(dynamics.geometry, dtype=torch.float32)
    torch.testing.assert_close(dynamics(t.source, t.action, t.task), t.source, rtol=0, atol=1e-6)


@every_variant
def test_without_a_generator_a_step_is_deterministic_and_with_one_repeatable(
    kind, geometry, make_dynamics, make_transition
):
    dynamics = make_dynamics(scrambled=True, **options(kind, geometry))
    t = make_transition(dynamics.geometry)
    step = lambda generator: dynamics(t.source, t.action, t.task, generator)  # noqa: E731
    assert torch.equal(step(None), step(None))
    assert torch.equal(step(rng(3)), step(rng(3)))
    stochastic = kind in ("gaussian", "generative")
    assert torch.equal(step(rng(3)), step(rng(4))) == (not stochastic)


@every_variant
def test_the_step_depends_on_state_action_and_task(kind, geometry, make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **options(kind, geometry))
    t, other = make_transition(dynamics.geometry), make_transition(dynamics.geometry, seed=1)
    moved = lambda t: dynamics.geometry.latent(dynamics(t.source, t.action, t.task))  # noqa: E731
    for changed in ({"source": other.source}, {"action": other.action}, {"task": other.task}):
        assert not torch.allclose(moved(t), moved(replace(t, **changed)), atol=1e-6)


@every_variant
@pytest.mark.parametrize("source", ["rollout", "teacher"])
def test_latents_stay_on_the_simplex_over_fifty_steps_after_senseless_training(
    kind, geometry, source, make_world_model, spec
):
    model = make_world_model(
        encoder={"kind": "mlp", "units": (16,)},
        reward={"kind": "scalar", "units": (16,)},
        dynamics=options(kind, geometry, units=(16, 16), source=source),
    )
    batch, generator = far_batch(spec), rng(1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    before = model.dynamics(*first_step_inputs(model, batch)).detach()
    for _ in range(8):
        loss = model_loss(model, batch, batch.reward, TrainingConfig(horizon=3), generator)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    with torch.no_grad():
        after = model.dynamics(*first_step_inputs(model, batch))
        assert (after - before).abs().max() > 1e-3  # the training did push the dynamics
        context = model.context(batch.task)
        state = model.encode(batch.obs[0], context)
        worst_simplex = worst_sum = torch.zeros(())
        for step in range(50):
            state = model.next(state, batch.action[step % 3], context, generator)
            z = model.latent(state)
            worst_simplex = torch.maximum(worst_simplex, simplex_violation(z, 8))
            # Without retraction z may have left [0, 1]: a sum of numbers that large rounds accordingly.
            worst_sum = torch.maximum(worst_sum, (group_sums(z) - 1.0).abs().max() / z.abs().max().clamp(min=1.0))
    assert worst_sum < 1e-5
    if geometry in ("logit", "retracted") or kind == "mlp":
        assert worst_simplex < 1e-5


def first_step_inputs(model, batch):
    context = model.context(batch.task)
    return model.encode(batch.obs[0], context), batch.action[0], context.embedding


@pytest.mark.parametrize("kind", ["flow", "neural_ode", "generative"])
@pytest.mark.parametrize("method", STAGES)
def test_announced_evaluations_are_those_of_the_network(kind, method, make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **(KINDS[kind] | {"integrator": method, "substeps": 3}))
    calls = []
    dynamics.velocity.network.register_forward_hook(lambda *_: calls.append(1))
    t = make_transition(dynamics.geometry)
    dynamics(t.source, t.action, t.task, rng())
    assert len(calls) == dynamics.nfe == 3 * STAGES[method]


@pytest.mark.parametrize("kind", ["mlp", "residual", "gaussian"])
def test_plain_networks_are_evaluated_once(kind, make_dynamics, make_transition):
    dynamics = make_dynamics(**KINDS[kind])
    calls = []
    dynamics.network.register_forward_hook(lambda *_: calls.append(1))
    t = make_transition(dynamics.geometry, dtype=torch.float32)
    dynamics(t.source, t.action, t.task, rng())
    assert len(calls) == dynamics.nfe == 1


@pytest.mark.parametrize("kind", ["mlp", "residual", "neural_ode"])
@pytest.mark.parametrize("loss_space", ["latent", "logit"])
def test_endpoint_losses_are_the_squared_error_in_the_named_space(kind, loss_space, make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **options(kind, "logit", loss_space=loss_space))
    t = make_transition(dynamics.geometry)
    loss, s_next = dynamics.loss(t, rng(), need_next=True)
    space = (lambda s: s) if loss_space == "logit" else dynamics.geometry.latent
    expected = (space(dynamics(t.source, t.action, t.task)) - space(t.target)).square().mean(-1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(s_next, dynamics(t.source, t.action, t.task))


@pytest.mark.parametrize("kind", ["flow", "neural_ode", "generative"])
def test_substep_noise_moves_samples_but_not_the_deterministic_step(kind, make_dynamics, make_transition):
    quiet = make_dynamics(scrambled=True, **KINDS[kind])
    noisy = make_dynamics(scrambled=True, **KINDS[kind], substep_noise=0.1)
    t = make_transition(quiet.geometry)
    step = lambda dynamics, generator: dynamics(t.source, t.action, t.task, generator)  # noqa: E731
    assert torch.equal(step(quiet, None), step(noisy, None))
    assert not torch.allclose(step(quiet, rng()), step(noisy, rng()))
    torch.testing.assert_close(group_sums(step(noisy, rng())), torch.ones(6, 3, dtype=torch.float64))


def test_substep_noise_has_one_variance_per_macro_step(make_dynamics, make_transition):
    stds = []
    for substeps in (1, 4):
        dynamics = make_dynamics(**KINDS["neural_ode"] | {"substeps": substeps}, substep_noise=0.1).eval()
        t = make_transition(dynamics.geometry, batch=4000, dtype=torch.float32)
        stds.append((dynamics(t.source, t.action, t.task, rng()) - dynamics(t.source, t.action, t.task)).std().item())
    assert stds[1] == pytest.approx(stds[0], rel=0.02)


@pytest.mark.parametrize(
    ("options", "stochastic"),
    [
        ({"kind": "mlp"}, False),
        ({"kind": "residual"}, False),
        ({"kind": "gaussian"}, True),
        ({"kind": "flow", "mode": "generative"}, True),
        ({"kind": "flow"}, False),
        ({"kind": "flow", "source_noise": 0.1}, True),
        ({"kind": "flow", "substep_noise": 0.1}, True),
        ({"kind": "neural_ode"}, False),
        ({"kind": "neural_ode", "substep_noise": 0.1}, True),
    ],
)
def test_stochastic_says_whether_two_draws_differ(make_dynamics, options, stochastic):
    dynamics = make_dynamics(scrambled=True, **options)
    dims = dynamics.dims
    start, action, task = (
        torch.full((3, n), 0.125, dtype=torch.float64) for n in (dims.latent_dim, dims.action_dim, dims.task_dim)
    )
    first, second = (dynamics(start, action, task, rng(seed)) for seed in (0, 1))
    assert dynamics.stochastic is stochastic
    assert torch.equal(first, second) is not stochastic


@pytest.mark.parametrize("kind", ["mlp", "residual", "neural_ode", "flow"])
def test_errors_over_the_spread_of_the_change_do_not_depend_on_units(kind, make_dynamics, make_transition):
    """Where the first state is predicted to stay, the error in units of the change is 1 whatever its size."""
    losses = []
    for size in (1.0, 100.0):
        scaled = {**KINDS[kind], "geometry": "euclidean", "error_scale": "change"}
        dynamics = make_dynamics(**scaled)
        t = make_transition(dynamics.geometry, batch=512, dtype=torch.float32)
        t = replace(t, source=torch.zeros_like(t.source), target=size * t.target)
        losses.append(dynamics.loss(t, rng(), need_next=True)[0].mean().item())
    terms = 2.0 if kind == "flow" else 1.0  # the flow's matching and endpoint errors
    assert losses == pytest.approx([terms, terms], rel=0.1)


def test_the_spread_of_the_change_is_learned_in_training_alone(make_dynamics, make_transition):
    dynamics = make_dynamics(**KINDS["residual"], error_scale="change").eval()
    t = make_transition(dynamics.geometry, dtype=torch.float32)
    dynamics.loss(t, rng(), need_next=True)
    assert dynamics.change.std.eq(1.0).all()


@pytest.mark.parametrize("kind", ["gaussian", "generative"])
def test_a_likelihood_that_is_scaled_already_takes_no_error_scale(kind, make_dynamics):
    with pytest.raises(ValueError, match="error_scale does not apply"):
        make_dynamics(**KINDS[kind], error_scale="change")


@pytest.mark.parametrize("kind", ["residual", "gaussian", "neural_ode", "flow", "generative"])
def test_networks_see_centred_logits_alone(kind, make_dynamics, make_transition):
    """A state of logits whose group means were not 0 would mean the same latent and another input."""
    dynamics = make_dynamics(scrambled=True, **options(kind, "logit"))
    network = dynamics.velocity.network if hasattr(dynamics, "velocity") else dynamics.network
    inputs = []
    network.register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    t = make_transition(dynamics.geometry)
    state = t.source
    for _ in range(3):
        state = dynamics(state, t.action, t.task, rng())
    dynamics.loss(t, rng(), need_next=True)
    width = t.source.shape[-1]
    for seen in inputs:
        means = dynamics.geometry.project(seen[:, :width]) - seen[:, :width]
        torch.testing.assert_close(means, torch.zeros_like(means), atol=1e-9, rtol=0.0)
