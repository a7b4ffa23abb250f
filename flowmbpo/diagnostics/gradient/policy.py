"""A policy whose noise is the same wherever it acts: in the model, in the environment, nudged or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.models.actors.base import Action, Actor
from flowmbpo.models.agent import Agent
from flowmbpo.models.task_context import TaskContext

LARGEST_ACTION = 1.0 - 1e-6  # beyond it float32 has no room left for a nudge


class FixedNoise(Actor):
    """`inner` with its noise fixed by `seeds`, one for every step and group of `rows` rows.

    Called as an actor (`imagine` does) it goes through the steps by itself from `rewind` on, for
    rows [replica, group, row]: replicas of a start share its noise. `nudges` [H, B, A], zeros that take
    gradient, are added to the actions: their gradient is dJ/da_h, what follows from it included.
    """

    def __init__(self, inner: Actor, seeds: Int[Tensor, "H G"], rows: int) -> None:
        super().__init__(inner.config)
        self.inner = inner
        self.seeds: list[list[int]] = seeds.tolist()
        self.rows = rows
        self._step = 0
        self._nudges: Float[Tensor, "H B A"] | None = None

    @property
    def nfe(self) -> int:
        """The inner actor's."""
        return self.inner.nfe

    @property
    def hidden_units(self) -> tuple[int, ...]:
        """The inner actor's."""
        return self.inner.hidden_units

    def preactivation(self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator | None) -> Action:
        """The inner actor's, with the caller's noise."""
        return self.inner.preactivation(z, context, generator)

    def sample_with_log_prob(
        self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator
    ) -> tuple[Action, Float[Tensor, " B"]]:
        """The inner actor's, with the caller's noise."""
        return self.inner.sample_with_log_prob(z, context, generator)

    def rewind(self, nudges: Float[Tensor, "H B A"] | None = None) -> None:
        """Begin again at the first step."""
        self._step = 0
        self._nudges = nudges

    def act(self, step: int, group: int, z: Float[Tensor, "N D"], context: TaskContext) -> Float[Tensor, "N A"]:
        """The actions of one group at one step."""
        generator = torch.Generator(z.device).manual_seed(self.seeds[step][group])
        action: Tensor = self.inner(z, context, generator)
        return action

    def forward(
        self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator | None = None
    ) -> Action:
        """The actions of all groups at the next step; `generator` is not read."""
        chunks, groups = z.shape[0] // self.rows, len(self.seeds[0])
        parts = zip(z.chunk(chunks), context.chunk(chunks), strict=True)
        action = torch.cat([self.act(self._step, place % groups, *part) for place, part in enumerate(parts)])
        if self._nudges is not None:
            action = action + self._nudges[self._step]
        self._step += 1
        return action


def displaced(action: Action, displacement: Action) -> Action:
    """tanh(u + displacement) for a = tanh(u): never outside the bounds, however close the action is to one."""
    inside = action.clamp(-LARGEST_ACTION, LARGEST_ACTION)
    return (inside.atanh() + displacement).tanh()


@contextmanager
def acting(agent: Agent, actor: Actor) -> Iterator[None]:
    """Inside, `actor` is the agent's."""
    own = agent.actor
    agent.actor = actor
    try:
        yield
    finally:
        agent.actor = own
