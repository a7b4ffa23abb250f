"""The agent that weights come from: what it was built of, its tensors, and what of it was never trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from flowmbpo.config.actors import ActorConfig, FlowActorConfig
from flowmbpo.config.dynamics import DynamicsConfig, DynamicsDims
from flowmbpo.config.model import CriticConfig, ModelConfig
from flowmbpo.errors import CheckpointError
from flowmbpo.models.agent import Agent
from flowmbpo.models.build import build_actor, build_dynamics
from flowmbpo.models.reward_normalizer import Normalization
from flowmbpo.spec import EnvSpec

SHOWN = 4  # names in an error


@dataclass(frozen=True)
class Architecture:
    """All that the tensors of an agent depend on, and what they mean."""

    model: ModelConfig
    actor: ActorConfig
    critic: CriticConfig
    spec: EnvSpec
    reward_normalization: Normalization

    @classmethod
    def of(cls, agent: Agent) -> Architecture:
        """The architecture that `agent` was built with."""
        actor = cast(ActorConfig, agent.actor.config)  # the union that every actor's config is of
        critic = agent.critic.config
        return cls(agent.world_model.config, actor, critic, agent.spec, agent.reward_normalizer.mode)

    def build(self) -> Agent:
        """An untrained agent of it, on torch's default device."""
        return Agent(self.model, self.actor, self.critic, self.spec, self.reward_normalization)

    def outline(self) -> Agent:
        """The agent without memory behind its weights: names, shapes and widths alone."""
        with torch.device("meta"):
            return self.build()


@dataclass(frozen=True)
class SourceAgent:
    """Another agent as its checkpoint holds it.

    `spec` is the task set it was built for, `state` the agent's state dict. `untrained` names parts
    (`flowmbpo.stages.transfer.layout.PARTS`) that the file does not really hold: an imported world model
    has no actor of ours.
    """

    model: ModelConfig
    actor: ActorConfig
    critic: CriticConfig
    spec: EnvSpec
    reward_normalization: Normalization
    state: Mapping[str, Tensor]
    untrained: tuple[str, ...] = ()

    @property
    def architecture(self) -> Architecture:
        """What it was built of."""
        return Architecture(self.model, self.actor, self.critic, self.spec, self.reward_normalization)

    def check(self) -> None:
        """Raises CheckpointError where the tensors are not those of the sections, or are not finite."""
        expected = {name: tuple(tensor.shape) for name, tensor in self.architecture.outline().state_dict().items()}
        held = {name: tuple(tensor.shape) for name, tensor in self.state.items()}
        wrong = [
            f"{name} is {held.get(name, 'missing')}, its config says {expected.get(name, 'none')}"
            for name in sorted(expected.keys() | held.keys())
            if held.get(name) != expected.get(name)
        ]
        if wrong:
            more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
            raise CheckpointError(
                f"the checkpoint's weights do not fit its own config: {'; '.join(wrong[:SHOWN])}{more}. Take another"
                " checkpoint of that run, or import the file again"
            )
        for name, tensor in self.state.items():
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(
                    f"the checkpoint's {name} holds values that are not finite, so nothing can start from it; take an"
                    " earlier checkpoint of that run"
                )


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
