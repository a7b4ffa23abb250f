"""Small models of every kind, with weights that say something (a zero-initialised head hides most mistakes)."""

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from flowmbpo.config.dynamics import DynamicsConfig, DynamicsDims
from flowmbpo.config.model import ModelConfig
from flowmbpo.models.build import build_dynamics
from flowmbpo.models.dynamics.base import Transition
from flowmbpo.models.world_model import WorldModel
from flowmbpo.nets.simnorm import simnorm
from flowmbpo.spec import EnvSpec, TaskInfo

DIMS = DynamicsDims(latent_dim=24, simnorm_dim=8, task_dim=4, action_dim=3)
DYNAMICS = TypeAdapter(DynamicsConfig)


def scramble_(module, seed=0, std=0.3):
    """Normal numbers in every parameter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter.data, std=std, generator=generator)
    return module


@pytest.fixture
def scramble():
    return scramble_


@pytest.fixture
def dims():
    return DIMS


@pytest.fixture
def spec():
    """Two tasks; the second has a narrower observation and a narrower action."""
    wide = TaskInfo("wide", "toy", 5, 3, 100, 1, 0.95)
    narrow = TaskInfo("narrow", "toy", 4, 2, 500, 1, 0.99)
    return EnvSpec((wide, narrow))


@pytest.fixture
def make_dynamics():
    """A dynamics from its options; `scrambled` weights are float64."""

    def make(*, scrambled=False, seed=0, dims=DIMS, **options):
        torch.manual_seed(seed)
        dynamics = build_dynamics(DYNAMICS.validate_python({"units": (16, 16), **options}), dims)
        return scramble_(dynamics, seed).double() if scrambled else dynamics

    return make


@pytest.fixture
def make_transition():
    """Random simplex latents (as states of `geometry`, default the latents themselves), actions and embeddings."""

    def make(geometry=None, batch=6, seed=0, dtype=torch.float64, dims=DIMS):
        generator = torch.Generator().manual_seed(seed)
        draw = lambda width: torch.randn(batch, width, generator=generator, dtype=dtype)  # noqa: E731
        state = geometry.from_logits if geometry is not None else lambda logits: simnorm(logits, dims.simnorm_dim)
        return Transition(
            source=state(draw(dims.latent_dim)),
            action=draw(dims.action_dim).tanh(),
            task=0.1 * draw(dims.task_dim),
            target=state(draw(dims.latent_dim)),
        )

    return make


@pytest.fixture
def make_world_model(spec):
    """A world model over the two tasks."""

    def make(*, seed=0, task_dim=4, scrambled=False, **options):
        torch.manual_seed(seed)
        config = ModelConfig.model_validate({"latent_dim": 24, "task_dim": task_dim, **options})
        model = WorldModel(config, spec)
        return scramble_(model, seed).double() if scrambled else model

    return make
