"""Parameter counts per part, and the hidden widths as built."""

from __future__ import annotations

from typing import Any

from torch import nn

from flowmbpo.models.agent import Agent


def parameter_counts(agent: Agent) -> dict[str, int]:
    """Trainable parameters of every part of the agent; an absent part counts 0."""
    model = agent.world_model
    parts: dict[str, nn.Module | None] = {
        "encoder": model.encoder,
        "dynamics": model.dynamics,
        "reward": model.reward_head,
        "termination": model.termination_head,
        "task_embedding": model.tasks,
        "actor": agent.actor,
        "critic": agent.critic,
    }
    return {name: 0 if part is None else count_parameters(part) for name, part in parts.items()}


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def solved_widths(agent: Agent) -> dict[str, Any]:
    """Hidden widths of the parts whose widths parity may solve."""
    return {
        "dynamics": list(agent.world_model.dynamics.hidden_units),
        "actor": list(agent.actor.hidden_units),
    }
