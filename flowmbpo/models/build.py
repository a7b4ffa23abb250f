"""From options to networks: the one table, from each option class to the class that it describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from flowmbpo.config.actors import ActorConfig, FlowActorConfig, GaussianActorConfig
from flowmbpo.config.dynamics import (
    DynamicsConfig,
    DynamicsDims,
    FlowDynamicsConfig,
    GaussianDynamicsConfig,
    MLPDynamicsConfig,
    NeuralODEDynamicsConfig,
    ResidualDynamicsConfig,
)
from flowmbpo.config.model import (
    AnyEncoderConfig,
    EncoderConfig,
    IdentityEncoderConfig,
    RewardConfig,
    ScalarRewardConfig,
    TwoHotRewardConfig,
)
from flowmbpo.errors import ConfigError
from flowmbpo.models.actors.base import Actor
from flowmbpo.models.actors.flow import FlowActor
from flowmbpo.models.actors.gaussian import GaussianActor
from flowmbpo.models.dynamics.base import Dynamics
from flowmbpo.models.dynamics.flow import FlowDynamics
from flowmbpo.models.dynamics.gaussian import GaussianDynamics
from flowmbpo.models.dynamics.generative_flow import GenerativeFlowDynamics
from flowmbpo.models.dynamics.mlp import MLPDynamics
from flowmbpo.models.dynamics.neural_ode import NeuralODEDynamics
from flowmbpo.models.dynamics.residual import ResidualDynamics
from flowmbpo.models.heads import IdentityEncoder, NormalizedEncoder, RewardHead, ScalarReward, TwoHotReward
from flowmbpo.nets.activations import use_activation_
from flowmbpo.nets.mlp import normed_mlp
from flowmbpo.spec import EnvSpec


def _mlp_encoder(config: EncoderConfig, spec: EnvSpec, task_dim: int, latent_dim: int) -> nn.Module:
    return normed_mlp(spec.obs_dim + task_dim, config.units, latent_dim, normed_output=True)


def _identity_encoder(config: IdentityEncoderConfig, spec: EnvSpec, task_dim: int, latent_dim: int) -> nn.Module:
    if latent_dim != spec.obs_dim:
        raise ConfigError(
            f"model.latent_dim {latent_dim} does not fit model.encoder.kind 'identity', where the observation is"
            f" the state: '{spec.label}' has obs_dim {spec.obs_dim}. Set model.latent_dim to {spec.obs_dim}."
        )
    return IdentityEncoder(spec.obs_dim)


def _flow(config: FlowDynamicsConfig, dims: DynamicsDims) -> Dynamics:
    return GenerativeFlowDynamics(config, dims) if config.mode == "generative" else FlowDynamics(config, dims)


ENCODERS: dict[type, Callable[..., nn.Module]] = {
    EncoderConfig: _mlp_encoder,
    IdentityEncoderConfig: _identity_encoder,
}
DYNAMICS: dict[type, Callable[[Any, DynamicsDims], Dynamics]] = {
    MLPDynamicsConfig: MLPDynamics,
    ResidualDynamicsConfig: ResidualDynamics,
    GaussianDynamicsConfig: GaussianDynamics,
    FlowDynamicsConfig: _flow,
    NeuralODEDynamicsConfig: NeuralODEDynamics,
}
REWARDS: dict[type, Callable[[Any, int], RewardHead]] = {
    ScalarRewardConfig: ScalarReward,
    TwoHotRewardConfig: TwoHotReward,
}
ACTORS: dict[type, Callable[[Any, int, int, int], Actor]] = {
    GaussianActorConfig: GaussianActor,
    FlowActorConfig: FlowActor,
}


def build_encoder(config: AnyEncoderConfig, spec: EnvSpec, task_dim: int, latent_dim: int) -> nn.Module:
    """The encoder of observations with a task embedding. Raises ConfigError where the widths do not fit."""
    encoder = ENCODERS[type(config)](config, spec, task_dim, latent_dim)
    return NormalizedEncoder(encoder, spec.obs_dim, config.normalize_steps) if config.normalize_steps else encoder


def build_dynamics(config: DynamicsConfig, dims: DynamicsDims) -> Dynamics:
    """The dynamics of states of `dims`."""
    return DYNAMICS[type(config)](config, dims)


def build_reward(config: RewardConfig, input_dim: int) -> RewardHead:
    """The reward head on [z, task, action] of `input_dim` numbers."""
    return REWARDS[type(config)](config, input_dim)


def build_actor(config: ActorConfig, latent_dim: int, task_dim: int, action_dim: int) -> Actor:
    """The policy on latents with a task embedding."""
    actor = ACTORS[type(config)](config, latent_dim, task_dim, action_dim)
    use_activation_(actor, config.activation)
    return actor
