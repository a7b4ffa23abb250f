"""What every actor offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.config.actors import _ActorConfig
from flowmbpo.models.task_context import TaskContext
from flowmbpo.nets.noise import standard_normal

Action = Float[Tensor, "B A"]


class Actor(nn.Module, ABC):
    """pi(a | z, e_task), bounded by tanh and masked to the task's own action dimensions.

    `generator` None means the deterministic action (the mean; a flow of zero noise).
    """

    nfe = 1
    """Network evaluations per action."""
    hidden_units: tuple[int, ...]
    """Hidden widths as built, after solving for parity."""

    def __init__(self, config: _ActorConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def preactivation(self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator | None) -> Action:
        """The action before noise floor, tanh and mask."""

    @abstractmethod
    def sample_with_log_prob(
        self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator
    ) -> tuple[Action, Float[Tensor, " B"]]:
        """A sample and its exact log-density over the task's own action dimensions.

        Raises ValueError where no exact density exists.
        """

    def forward(
        self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator | None = None
    ) -> Action:
        """An action in [-1, 1]: a reparameterised sample, or deterministic without a generator."""
        u = self.preactivation(z, context, generator)
        if self.config.noise_floor > 0.0 and generator is not None:
            u = u + self.config.noise_floor * standard_normal(u, generator)
        return u.tanh() * context.action_mask

    def clamp_(self) -> None:
        """Bring parameters back into their bounds after an optimiser step; most actors have none."""


def tanh_log_det(u: Action, mask: Action) -> Float[Tensor, " B"]:
    """log |d tanh(u) / du| summed over the unmasked dimensions, stable for large |u|."""
    per_dimension = 2.0 * (0.6931471805599453 - u - nn.functional.softplus(-2.0 * u))
    return (per_dimension * mask).sum(-1)
