"""What the networks know of the task: its embedding and which action dimensions exist."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowmbpo.envs.spec import EnvSpec


@dataclass(frozen=True)
class TaskContext:
    """Per row: embedding [B, E] (E = 0 for a single task), 0/1 action mask [B, A], discount [B]."""

    embedding: Float[Tensor, "B E"]
    action_mask: Float[Tensor, "B A"]
    discount: Float[Tensor, " B"]

    def repeat(self, times: int) -> TaskContext:
        """The same rows `times` times over, one whole copy after another."""
        return TaskContext(
            self.embedding.repeat(times, 1), self.action_mask.repeat(times, 1), self.discount.repeat(times)
        )


class TaskTable(nn.Module):
    """Looks task ids up. A single task is the case of one.

    Embeddings are scaled down to norm 1 where longer, as TD-MPC2's max_norm does, but without
    writing to the weights in place.
    """

    action_masks: Tensor
    discounts: Tensor

    def __init__(self, spec: EnvSpec, task_dim: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.empty(len(spec.tasks), task_dim).uniform_(-0.02, 0.02))
        masks = torch.zeros(len(spec.tasks), spec.action_dim)
        for row, task in zip(masks, spec.tasks, strict=True):
            row[: task.action_dim] = 1.0
        self.register_buffer("action_masks", masks, persistent=False)
        discounts = torch.tensor([task.discount for task in spec.tasks])
        self.register_buffer("discounts", discounts, persistent=False)

    def forward(self, task: Int[Tensor, " B"]) -> TaskContext:
        """The context of each row's task id."""
        rows = self.embeddings[task]
        if rows.shape[-1]:
            rows = rows / rows.norm(dim=-1, keepdim=True).clamp(min=1.0)
        return TaskContext(rows, self.action_masks[task], self.discounts[task])
