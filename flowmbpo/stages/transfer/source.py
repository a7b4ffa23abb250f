"""The agent that weights come from: what it was built of, its tensors, and what of it was never trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from flowmbpo.config.actors import ActorConfig
from flowmbpo.config.model import CriticConfig, ModelConfig
from flowmbpo.errors import CheckpointError
from flowmbpo.models.agent import Agent
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
