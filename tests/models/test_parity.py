"""Variants at the reference's size, and the reference at its published one. Counted without allocating weights."""

import pytest
import torch

from flowmbpo.config.actors import FlowActorConfig, GaussianActorConfig
from flowmbpo.config.model import ModelConfig
from flowmbpo.models.build import build_actor
from flowmbpo.models.world_model import WorldModel
from flowmbpo.spec import EnvSpec, TaskInfo

SIZES = {
    "mini": {"latent_dim": 64, "encoder": (128,), "units": (128, 128)},
    "5M": {"latent_dim": 512, "encoder": (256,), "units": (512, 512)},
    "19M": {"latent_dim": 768, "encoder": (1024, 1024), "units": (1024, 1024)},
    "48M": {"latent_dim": 768, "encoder": (1792,) * 3, "units": (1792, 1792)},
}
SHAPES = {"pendulum": (3, 1, 0), "ant": (37, 8, 0), "mt30": (24, 6, 64), "humanoid": (67, 21, 96)}
VARIANTS = {
    "residual": {"kind": "residual"},
    "gaussian": {"kind": "gaussian"},
    "neural_ode": {"kind": "neural_ode"},
    "flow": {"kind": "flow"},
    "flow fourier": {"kind": "flow", "tau_features": "fourier"},
    "generative": {"kind": "flow", "mode": "generative"},
}


def task_spec(obs_dim, action_dim):
    return EnvSpec((TaskInfo("task", "toy", obs_dim, action_dim, 500, 2, 0.99),))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def world_model(size, shape, dynamics, reward=None):
    obs_dim, action_dim, task_dim = shape
    config = ModelConfig.model_validate(
        {
            "latent_dim": size["latent_dim"],
            "task_dim": task_dim,
            "encoder": {"kind": "mlp", "units": size["encoder"]},
            "dynamics": {"units": size["units"], **dynamics},
            "reward": {"units": size["units"], **(reward or {"kind": "scalar"})},
        }
    )
    with torch.device("meta"):
        return WorldModel(config, task_spec(obs_dim, action_dim))


def model_parameters(model):
    return count(model.encoder) + count(model.dynamics) + count(model.reward_head)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_world_models_have_the_mlp_s_parameter_count(variant, size, shape):
    reference = model_parameters(world_model(SIZES[size], SHAPES[shape], {"kind": "mlp"}))
    gap = model_parameters(world_model(SIZES[size], SHAPES[shape], VARIANTS[variant])) / reference - 1
    assert abs(gap) < 0.003  # the study allows 0.02


@pytest.mark.parametrize("variant", ["gaussian", "generative"])
def test_unsolved_widths_would_miss_parity_by_far(variant):
    reference = model_parameters(world_model(SIZES["5M"], SHAPES["ant"], {"kind": "mlp"}))
    unsolved = world_model(SIZES["5M"], SHAPES["ant"], {**VARIANTS[variant], "parity": False})
    assert model_parameters(unsolved) / reference - 1 > 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_parity_the_widths_are_those_written(variant):
    model = world_model(SIZES["mini"], SHAPES["ant"], {**VARIANTS[variant], "parity": False})
    assert model.dynamics.hidden_units == (128, 128)


def test_the_mlp_is_built_as_written():
    assert world_model(SIZES["mini"], SHAPES["ant"], {"kind": "mlp"}).dynamics.hidden_units == (128, 128)


@pytest.mark.parametrize("linear_start", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("latent_dim", "units"), [(64, (128, 128)), (512, (400, 200, 100)), (768, (400, 200, 100))])
def test_the_flow_actor_has_the_gaussian_s_parameter_count(latent_dim, units, shape, linear_start):
    _, action_dim, task_dim = SHAPES[shape]
    with torch.device("meta"):
        gaussian = build_actor(GaussianActorConfig(units=units), latent_dim, task_dim, action_dim)
        flow = build_actor(FlowActorConfig(units=units, linear_start=linear_start), latent_dim, task_dim, action_dim)
    assert abs(count(flow) / count(gaussian) - 1) < 0.003
    assert gaussian.hidden_units == units
    assert flow.hidden_units != units


def test_an_actor_without_parity_is_built_as_written():
    assert build_actor(FlowActorConfig(units=(32, 16), parity=False), 24, 0, 2).hidden_units == (32, 16)


# TD-MPC2's published sizes (obs 24 on MT30, 39 on MT80; 6 actions): encoder, dynamics, reward.
PUBLISHED = {
    "MT30 1M": (24, 96, 128, (256,), (384, 384), (64_640, 287_616, 276_965)),
    "MT30 5M": (24, 64, 512, (256,), (512, 512), (155_904, 826_880, 615_013)),
    "MT30 19M": (24, 64, 512, (1024, 1024), (1024, 1024), (1_670_656, 2_176_512, 1_754_213)),
    "MT30 48M": (24, 64, 768, (1792,) * 3, (1792, 1792), (7_974_912, 6_102_272, 4_904_805)),
    "MT30 317M": (24, 96, 1376, (4096,) * 4, (4096, 4096), (56_512_544, 28_495_904, 23_269_477)),
    "MT80 48M": (39, 96, 768, (1792,) * 3, (1792, 1792), (8_059_136, 6_159_616, 4_962_149)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_reference_has_the_published_parameter_counts(name):
    obs_dim, task_dim, latent_dim, encoder, units, expected = PUBLISHED[name]
    size = {"latent_dim": latent_dim, "encoder": encoder, "units": units}
    model = world_model(size, (obs_dim, 6, task_dim), {"kind": "mlp"}, {"kind": "two_hot"})
    assert (count(model.encoder), count(model.dynamics), count(model.reward_head)) == expected
