"""Which parts of another agent can be taken over, and why the others cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from flowmbpo.models.agent import Agent
from flowmbpo.stages.transfer.columns import fold_task
from flowmbpo.stages.transfer.layout import EMBEDDING, PREFIXES, Part, describe
from flowmbpo.stages.transfer.source import SourceAgent
from flowmbpo.stages.transfer.tasks import TABLE, TaskStart, effective_embedding

READ_THE_LATENT = ("dynamics", "reward", "termination", "actor", "critic", "target_critic", "return_scale")
DEPENDS_ON = {"target_critic": ("critic",), "return_scale": ("critic", "reward")}
"""Parts that mean nothing without others: the returns whose spread is tracked are those of reward and critic."""
UNTRAINED = "never trained in the source"

State = Mapping[str, Tensor]


def tensor_names(state: State, part: str) -> list[str]:
    """Names of the part's tensors."""
    return [name for name in state if name.startswith(PREFIXES[part])]


def misfits(
    old: Mapping[str, Part], new: Mapping[str, Part], state: State, fresh: State, untrained: tuple[str, ...]
) -> dict[str, str]:
    """The parts of the target (tensors `fresh`) that cannot be taken from the source (`state`), each with its reason.

    The embedding table is judged here only for having been trained: its rows follow the tasks.
    """
    found: dict[str, str] = {}
    if EMBEDDING in untrained:
        found[EMBEDDING] = UNTRAINED
    for name, part in new.items():
        if name != "encoder" and not tensor_names(fresh, name):
            continue  # the target has no such part
        if name in untrained:
            reason: str | None = UNTRAINED
        elif name in READ_THE_LATENT and "encoder" in found:
            reason = f"the latent that it reads is another: {found['encoder']}"
        else:
            reason = _own_reason(old[name], part, state, fresh)
        if reason is None:
            reason = next((f"goes with the {other}" for other in DEPENDS_ON.get(name, ()) if other in found), None)
        if reason is not None:
            found[name] = reason
    return found


def _own_reason(old: Part, new: Part, state: State, fresh: State) -> str | None:
    theirs, ours = tensor_names(state, new.name), tensor_names(fresh, new.name)
    if ours and not theirs and old.meaning == new.meaning:
        return "the source has none"
    # Keys that only one side has belong to its kind, which then differs too.
    changed = [
        f"{key.rpartition('.')[2]} {_said(old.meaning[key])} -> {_said(value)}"
        for key, value in new.meaning.items()
        if key in old.meaning and old.meaning[key] != value
    ]
    if changed:
        return ", ".join(changed)
    return _other_widths(old, new, state, fresh)


def _said(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _other_widths(old: Part, new: Part, state: State, fresh: State) -> str | None:
    theirs, ours = tensor_names(state, new.name), tensor_names(fresh, new.name)
    if theirs != ours and set(theirs) != set(ours):
        return f"layers differ: {len(theirs)} tensors -> {len(ours)}"
    for name in ours:
        before = _fixed(state[name], {axis.dim for axis in old.axes.get(name, ())})
        after = _fixed(fresh[name], {axis.dim for axis in new.axes.get(name, ())})
        if before != after:
            return f"hidden widths differ: {name.removeprefix(new.prefix)} {before} -> {after}"
    return None


def _fixed(tensor: Tensor, variable: set[int]) -> list[int | str]:
    """The shape, with what follows the task left open."""
    return ["*" if dim in variable else size for dim, size in enumerate(tensor.shape)]


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
