"""Observation-as-state models: the identity encoder and Euclidean geometry, for every dynamics that may have them."""

import math

import pytest
import torch
from pydantic import ValidationError

from flowmbpo.config.dynamics import DynamicsDims
from flowmbpo.config.model import IdentityEncoderConfig, ModelConfig
from flowmbpo.errors import ConfigError
from flowmbpo.flows.simplex import EuclideanGeometry
from flowmbpo.models.build import build_encoder
from flowmbpo.models.dynamics.base import Transition, reference_parameters
from flowmbpo.models.world_model import WorldModel
from flowmbpo.parity.flops import count_parameters
from flowmbpo.spec import EnvSpec, TaskInfo

KINDS = {
    "residual": {"kind": "residual"},
    "gaussian": {"kind": "gaussian"},
    "neural_ode": {"kind": "neural_ode", "substeps": 3},
    "flow": {"kind": "flow", "substeps": 3, "endpoint_weight": 1.0},
    "generative": {"kind": "flow", "mode": "generative", "substeps": 3},
}
SINGLE = EnvSpec((TaskInfo("line", "toy", 1, 1, 100, 1, 0.95),))
DIMS = DynamicsDims(latent_dim=5, simnorm_dim=8, task_dim=4, action_dim=3)

every_kind = pytest.mark.parametrize("kind", KINDS)


def identity_model(make_world_model, kind="residual", **more):
    dynamics = {**KINDS[kind], "geometry": "euclidean", "units": (16, 16)}
    options = {"latent_dim": 5, "encoder": {"kind": "identity"}, "dynamics": dynamics}
    return make_world_model(**{**options, **more})


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every_kind
def test_state_and_latent_are_the_observation_itself(kind, make_world_model):
    model = identity_model(make_world_model, kind, scrambled=True)
    obs, context = 10.0 * draw(6, 5), model.context(torch.tensor([0, 1] * 3))
    assert torch.equal(model.latent(model.encode(obs, context)), obs)
    assert count_parameters(model.encoder) == 0


@every_kind
def test_untrained_dynamics_leave_the_observation_where_it_is(kind, make_world_model):
    model = identity_model(make_world_model, kind)
    obs, context = 10.0 * draw(6, 5).float(), model.context(torch.zeros(6, dtype=torch.long))
    assert torch.equal(model.next(obs, torch.ones(6, 3), context), obs)


@every_kind
def test_displacements_are_free_of_the_simplex(kind, make_world_model):
    """The group of 8 does not even divide the 5 coordinates, and their sum moves."""
    model = identity_model(make_world_model, kind, scrambled=True)
    obs, context = draw(6, 5), model.context(torch.zeros(6, dtype=torch.long))
    moved = model.next(obs, draw(6, 3, seed=1), context) - obs
    assert moved.sum(-1).abs().min() > 1e-3


@every_kind
def test_dynamics_keep_the_reference_s_parameter_count(kind, make_dynamics):
    reference = reference_parameters(DIMS, (128, 128))
    dynamics = make_dynamics(dims=DIMS, **{**KINDS[kind], "geometry": "euclidean", "units": (128, 128)})
    assert abs(count_parameters(dynamics) - reference) <= 0.01 * reference


def test_one_coordinate_is_enough():
    """The one-dimensional maps: no group to normalise, no group mean to lose."""
    config = ModelConfig.model_validate(
        {
            "latent_dim": 1,
            "encoder": {"kind": "identity"},
            "dynamics": {"kind": "gaussian", "geometry": "euclidean", "units": (8,)},
        }
    )
    model = WorldModel(config, SINGLE)
    context = model.context(torch.zeros(4, dtype=torch.long))
    obs = draw(4, 1).float()
    sampled = model.next(obs, torch.zeros(4, 1), context, torch.Generator().manual_seed(0))
    assert sampled.shape == (4, 1)
    assert (sampled - obs).abs().min() > 0.0


def test_gaussian_samples_have_the_standard_deviation_of_the_likelihood(make_dynamics):
    """log-std starts at 0 and s_D at 1: samples are N(s, 1), with nothing to make up for."""
    dims = DynamicsDims(latent_dim=2, simnorm_dim=8, task_dim=0, action_dim=1)
    dynamics = make_dynamics(dims=dims, kind="gaussian", geometry="euclidean")
    rows = 50_000
    sampled = dynamics(
        torch.zeros(rows, 2), torch.zeros(rows, 1), torch.zeros(rows, 0), torch.Generator().manual_seed(0)
    )
    # The standard error of a standard deviation is 1/sqrt(2n) = .003; with the simplex's gain it would be 1.069.
    assert sampled.std(0).tolist() == pytest.approx([1.0, 1.0], abs=0.015)


def test_residual_loss_is_the_squared_error_of_the_observation(make_dynamics):
    dims = DynamicsDims(latent_dim=2, simnorm_dim=8, task_dim=0, action_dim=1)
    dynamics = make_dynamics(dims=dims, kind="residual", geometry="euclidean")
    source = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    target = torch.tensor([[1.5, -1.0], [3.0, 0.0]])
    transition = Transition(source, torch.zeros(2, 1), torch.zeros(2, 0), target)
    loss, _ = dynamics.loss(transition, torch.Generator(), need_next=False)
    assert loss.tolist() == pytest.approx([(0.25 + 1.0) / 2, 4.5])


def test_euclidean_geometry_changes_nothing_and_forbids_nothing():
    geometry = EuclideanGeometry()
    s, v = draw(3, 5), draw(3, 5, seed=1)
    for same in (geometry.project(s), geometry.from_logits(s), geometry.latent(s), geometry.from_latent(s)):
        assert torch.equal(same, s)
    assert torch.equal(geometry.move(s, v), s + v)
    assert torch.equal(geometry.pushforward(s, v), v)
    assert (geometry.noise_gain, geometry.violation(s).item()) == (1.0, 0.0)


def test_the_gain_on_a_simplex_is_what_projection_costs(make_dynamics):
    geometry = make_dynamics(kind="gaussian").geometry
    assert geometry.noise_gain == pytest.approx(math.sqrt(8 / 7))
    assert geometry.violation(torch.full((1, 24), 0.25)).item() == pytest.approx(1.0)  # groups of 8 sum to 2


def test_a_latent_that_is_not_as_wide_as_the_observation_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"model\.latent_dim 16 .* 'line' has obs_dim 1\. Set model\.latent_dim to 1"):
        build_encoder(IdentityEncoderConfig(), SINGLE, 0, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": {"kind": "identity"}, "dynamics": {"kind": "residual"}}, "needs dynamics.geometry 'euclidean'"),
        ({"dynamics": {"kind": "flow", "geometry": "euclidean"}}, "needs encoder.kind 'identity', not 'mlp'"),
        ({"dynamics": {"kind": "mlp", "geometry": "euclidean"}}, "needs encoder.kind 'identity', not 'mlp'"),
        (
            {"dynamics": {"kind": "residual", "geometry": "euclidean", "loss_space": "logit"}},
            "loss_space 'logit' needs geometry 'logit'",
        ),
        (
            {"dynamics": {"kind": "residual", "geometry": "euclidean", "retraction": "project"}},
            "retraction is for geometry 'tangent'",
        ),
    ],
)
def test_combinations_without_meaning_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate(options)


@pytest.mark.parametrize("encoder", [{"kind": "identity"}, {"kind": "mlp", "units": [8]}])
def test_encoder_sees_normalised_observations_and_the_task_as_it_is(encoder, make_world_model):
    options = (
        {} if encoder["kind"] == "mlp" else {"latent_dim": 5, "dynamics": {"kind": "mlp", "geometry": "euclidean"}}
    )
    plain = make_world_model(**{"encoder": encoder, **options}, scrambled=True)
    model = make_world_model(**{"encoder": {**encoder, "normalize_steps": 4}, **options}, scrambled=True)
    model.load_state_dict(plain.state_dict(), strict=False)
    model.encoder.encoder.load_state_dict(plain.encoder.state_dict())
    seen, context = 3.0 + 2.0 * draw(4, 5), model.context(torch.tensor([0, 1, 0, 1]))
    model.observe(seen)
    normalised = (seen - seen.mean(0)) / seen.std(0, correction=0)
    torch.testing.assert_close(model.encode(seen, context), plain.encode(normalised, context))


def test_mlp_dynamics_on_observations_predict_the_next_one_without_a_norm(make_world_model):
    dynamics = {"kind": "mlp", "geometry": "euclidean", "units": (16,)}
    model = make_world_model(latent_dim=5, encoder={"kind": "identity"}, dynamics=dynamics, scrambled=True)
    context = model.context(torch.zeros(2, dtype=torch.long))
    obs = 10.0 * draw(1, 5).repeat(2, 1)
    assert not torch.equal(*model.next(obs, draw(2, 3, seed=1), context))
    assert model.dynamics.network[-1].weight.shape == (5, 16)
