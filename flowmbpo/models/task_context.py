"""What the networks know of the task: its embedding and which action dimensions exist."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowmbpo.spec import EnvSpec


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

    def rows(self, index: Int[Tensor, " N"]) -> TaskContext:
        """The rows of `index`, in its order."""
        return TaskContext(self.embedding[index], self.action_mask[index], self.discount[index])

    def chunk(self, chunks: int) -> list[TaskContext]:
        """Consecutive rows in as many parts as `torch.chunk` makes."""
        parts = (column.chunk(chunks) for column in (self.embedding, self.action_mask, self.discount))
        return [TaskContext(*part) for part in zip(*parts, strict=True)]

    def append_to(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D+E"]:
        """[x, embedding]; x itself, uncopied, where there is no embedding."""
        return torch.cat([x, self.embedding], dim=-1) if self.embedding.shape[-1] else x


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
