"""The agent that weights come from: what it was built of, its tensors, and the widths kept over stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor

from flowmbpo.checkpoints.payload import architecture_mismatch
from flowmbpo.config.actors import ActorConfig, FlowActorConfig
from flowmbpo.config.dynamics import DynamicsConfig, DynamicsDims
from flowmbpo.config.model import CriticConfig, ModelConfig
from flowmbpo.errors import CheckpointError
from flowmbpo.models.agent import Agent
from flowmbpo.models.build import build_actor, build_dynamics
from flowmbpo.models.reward_normalizer import Normalization
from flowmbpo.spec import EnvSpec

Solved = TypeVar("Solved", DynamicsConfig, FlowActorConfig)


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
        return cls(agent.world_model.config, actor, agent.critic.config, agent.spec, agent.reward_normalizer.mode)

    def build(self) -> Agent:
        """An untrained agent of it, on torch's default device."""
        return Agent(self.model, self.actor, self.critic, self.spec, self.reward_normalization)


@dataclass(frozen=True)
class SourceAgent:
    """Another agent as its checkpoint holds it: `state` is its state dict.

    `untrained` names parts (`flowmbpo.stages.transfer.layout.PARTS`) that the file does not really hold: an imported
    world model has no actor of ours.
    """

    architecture: Architecture
    state: Mapping[str, Tensor]
    untrained: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises CheckpointError where the tensors are not those of the sections, or are not finite."""
        with torch.device("meta"):
            outline = self.architecture.build().state_dict()
        mismatch = architecture_mismatch(outline, self.state)
        if mismatch is not None:
            raise CheckpointError(
                f"the checkpoint's weights do not fit its own config ({mismatch}). Take another checkpoint of that"
                " run, or import the file again"
            )
        for name, tensor in self.state.items():
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(
                    f"the checkpoint's {name} holds values that are not finite, so nothing can start from it; take an"
                    " earlier checkpoint of that run"
                )


def adopt_widths(
    model: ModelConfig, actor: ActorConfig, spec: EnvSpec, source: Architecture
) -> tuple[ModelConfig, ActorConfig]:
    """The sections with `solved_units` set to the source's widths where nothing but solving would make them differ.

    Widths solved for parity depend on the task's actions and embedding, so that a set and one of its tasks may be a
    unit apart, and no weight would fit. `solved_units` that stand there already, from an earlier stage, are taken out.
    """
    here, there = (
        DynamicsDims(m.latent_dim, m.simnorm_dim, m.task_dim, s.action_dim)
        for m, s in ((model, spec), (source.model, source.spec))
    )
    dynamics = _adopted(model.dynamics, source.model.dynamics, here, there)
    if isinstance(actor, FlowActorConfig):
        actor = _adopted(actor, source.actor, here, there)
    return model.model_copy(update={"dynamics": dynamics}), actor


def _adopted(asked: Solved, held: DynamicsConfig | ActorConfig, here: DynamicsDims, there: DynamicsDims) -> Solved:
    solving = asked.model_copy(update={"solved_units": None})
    if not isinstance(held, type(asked)) or here.latent_dim != there.latent_dim:
        return solving
    if _units(solving, there) != _units(held.model_copy(update={"solved_units": None}), there):
        return solving
    built = _units(held, there)
    return solving if built == _units(solving, here) else solving.model_copy(update={"solved_units": built})


def _units(config: DynamicsConfig | FlowActorConfig, dims: DynamicsDims) -> tuple[int, ...]:
    with torch.device("meta"):
        if isinstance(config, FlowActorConfig):
            return build_actor(config, dims.latent_dim, dims.task_dim, dims.action_dim).hidden_units
        return build_dynamics(config, dims).hidden_units
