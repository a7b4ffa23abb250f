"""Hidden widths kept over stages, and the teacher of dynamics that cannot be loaded."""

from __future__ import annotations

import torch

from flowmbpo.config.actors import ActorConfig, FlowActorConfig
from flowmbpo.config.dynamics import DynamicsConfig, DynamicsDims
from flowmbpo.config.model import ModelConfig
from flowmbpo.models.build import build_actor, build_dynamics
from flowmbpo.spec import EnvSpec
from flowmbpo.stages.transfer.source import SourceAgent

Units = tuple[int, ...]


def adopt_widths(
    model: ModelConfig, actor: ActorConfig, spec: EnvSpec, source: SourceAgent
) -> tuple[ModelConfig, ActorConfig]:
    """The sections with `solved_units` set to the source's widths where nothing but solving would make them differ.

    Widths solved for parity depend on the task's actions and embedding, so that a set and one of its tasks may be a
    unit apart, and no weight would fit. `solved_units` that stand there already, from an earlier stage, are taken out.
    """
    dynamics = _adopted_dynamics(model, spec, source)
    return model.model_copy(update={"dynamics": dynamics}), _adopted_actor(model, actor, spec, source)


def _adopted_dynamics(model: ModelConfig, spec: EnvSpec, source: SourceAgent) -> DynamicsConfig:
    solving = _unadopted(model.dynamics)
    theirs = source.model.dynamics
    there = _dims(source.model, source.spec)
    alike = type(solving) is type(theirs) and model.latent_dim == source.model.latent_dim
    if not alike or _dynamics_units(solving, there) != _dynamics_units(_unadopted(theirs), there):
        return solving
    built = _dynamics_units(theirs, there)
    if built == _dynamics_units(solving, _dims(model, spec)):
        return solving
    return solving.model_copy(update={"solved_units": built})


def _adopted_actor(model: ModelConfig, actor: ActorConfig, spec: EnvSpec, source: SourceAgent) -> ActorConfig:
    if not isinstance(actor, FlowActorConfig):
        return actor
    solving, theirs = actor.model_copy(update={"solved_units": None}), source.actor
    there = _dims(source.model, source.spec)
    if not isinstance(theirs, FlowActorConfig) or model.latent_dim != source.model.latent_dim:
        return solving
    if _actor_units(solving, there) != _actor_units(theirs.model_copy(update={"solved_units": None}), there):
        return solving
    built = _actor_units(theirs, there)
    return (
        solving
        if built == _actor_units(solving, _dims(model, spec))
        else solving.model_copy(update={"solved_units": built})
    )


def _unadopted(config: DynamicsConfig) -> DynamicsConfig:
    return config.model_copy(update={"solved_units": None})


def _dims(model: ModelConfig, spec: EnvSpec) -> DynamicsDims:
    return DynamicsDims(model.latent_dim, model.simnorm_dim, model.task_dim, spec.action_dim)


def _dynamics_units(config: DynamicsConfig, dims: DynamicsDims) -> Units:
    with torch.device("meta"):
        return build_dynamics(config, dims).hidden_units


def _actor_units(config: FlowActorConfig, dims: DynamicsDims) -> Units:
    with torch.device("meta"):
        return build_actor(config, dims.latent_dim, dims.task_dim, dims.action_dim).hidden_units
