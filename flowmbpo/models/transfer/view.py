"""The source as the target can read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from flowmbpo.models.agent import Agent
from flowmbpo.models.transfer.columns import fold_task
from flowmbpo.models.transfer.fit import tensor_names
from flowmbpo.models.transfer.layout import PREFIXES, Part, describe
from flowmbpo.models.transfer.source import SourceAgent
from flowmbpo.models.transfer.tasks import TABLE, TaskStart, effective_embedding

CRITIC, TARGET_CRITIC = "critic", "target_critic"


@dataclass(frozen=True)
class View:
    """The source's tensors and parts; `notes` says which tensors are no longer as they were stored.

    `folded`: the one task's embedding lies in the biases, and no network reads it any more.
    """

    state: Mapping[str, Tensor]
    parts: Mapping[str, Part]
    notes: Mapping[str, str]
    untrained: tuple[str, ...]
    folded: bool


def view(source: SourceAgent, target: Agent, starts: tuple[TaskStart, ...]) -> View:
    """Folds an embedding that the target has no room for, and gives a target critic that the source lacks."""
    architecture, state = source.architecture, dict(source.state)
    parts, notes = describe(architecture), dict[str, str]()
    folded = source.model.task_dim > 0 and target.world_model.config.task_dim == 0 and len(starts) == 1
    if folded:
        state = fold_task(state, parts, effective_embedding(state[TABLE], starts[0].row))
        said = f"embedding of {starts[0].source} folded into the bias"
        for part in parts.values():
            notes |= {name: said for weight, bias in part.biases.items() if weight in state for name in (weight, bias)}
        parts = describe(replace(architecture, model=source.model.model_copy(update={"task_dim": 0})))
    if target.target_critic is not None and not tensor_names(state, TARGET_CRITIC):
        for name in tensor_names(state, CRITIC):
            copy = PREFIXES[TARGET_CRITIC] + name.removeprefix(PREFIXES[CRITIC])
            state[copy], notes[copy] = state[name], "a copy of the critic: the source has no target network"
    return View(state, parts, notes, source.untrained, folded)
