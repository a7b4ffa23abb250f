"""Whether the dynamics' network has the action at the inputs where it was trained to have it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from flowmbpo.diagnostics.health.arrangement import dynamics_error
from flowmbpo.diagnostics.health.comparison import Paired, compare_errors
from flowmbpo.diagnostics.health.experience import Stretches
from flowmbpo.diagnostics.subject import Subject

SEARCH_ROWS = 256
SEARCH_LIMIT = 2048  # exchanges; a wider model is only asked for whole blocks
BLOCK_MOVED = "actions before"
BLOCK_REPAIRED = 1.2  # a model that is broken in another way gains 0.8 by moving its inputs about


def misplaced_inputs(subject: Subject, rows: Stretches) -> tuple[str, Paired] | None:
    """The exchange of an action's column with another at the network's input that predicts best, and how well.

    Whole blocks in another order are tried too, and must help more. An exchange counts for nothing where a
    tenth of all exchanges do half as much: then the model is broken in another way, and anything helps it.
    None where the network begins with no linear layer that could have its columns in another order.
    """
    linear = _input_layer(subject)
    if linear is None:
        return None
    error, action = dynamics_error(subject, rows), rows.action[0]
    few = rows.first(SEARCH_ROWS)
    quick, few_action = dynamics_error(subject, few), few.action[0]
    baseline = quick(few_action)
    orders = _orders(subject, linear.in_features)
    effects = {}
    for name, order in orders.items():
        with _reordered(linear, order):
            effects[name] = compare_errors(baseline, quick(few_action), few.block).effect
    best = min(effects, key=lambda name: effects[name])
    alike = sum(effect <= 0.5 * effects[best] for effect in effects.values())
    baseline = error(action)
    with _reordered(linear, orders[best]):
        paired = compare_errors(baseline, error(action), rows.block)
    whole_block = best.startswith(BLOCK_MOVED)
    doubtful = paired.effect > -BLOCK_REPAIRED if whole_block else alike > max(1, len(orders) // 10)
    return best, replace(paired, effect=0.0, z=0.0) if doubtful else paired


def _input_layer(subject: Subject) -> nn.Linear | None:
    dynamics = subject.agent.world_model.dynamics
    linear = next((part for part in dynamics.modules() if isinstance(part, nn.Linear)), None)
    dims = dynamics.dims
    wide_enough = linear is not None and linear.in_features >= dims.latent_dim + dims.task_dim + dims.action_dim
    return linear if wide_enough else None


def _orders(subject: Subject, inputs: int) -> dict[str, list[int]]:
    dims = subject.agent.world_model.dynamics.dims
    before, width = dims.latent_dim + dims.task_dim, dims.action_dim
    columns = list(range(inputs))
    latent, task = columns[: dims.latent_dim], columns[dims.latent_dim : before]
    actions, rest = columns[before : before + width], columns[before + width :]
    orders = {f"{BLOCK_MOVED} everything else": actions + latent + task + rest}
    if task:
        orders[f"{BLOCK_MOVED} the task"] = latent + actions + task + rest
    if before * width <= SEARCH_LIMIT:
        for i in range(width):
            for j in range(before):
                order = columns.copy()
                order[j], order[before + i] = order[before + i], order[j]
                orders[f"action {i} in the place of input {j}"] = order
    return orders


def _reordered(linear: nn.Linear, order: list[int]) -> AbstractContextManager[Any]:
    def reorder(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][..., order],)

    return linear.register_forward_pre_hook(reorder)
