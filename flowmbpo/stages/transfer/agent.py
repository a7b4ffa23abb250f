"""Which parts of another agent can be taken over, and why the others cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowmbpo.errors import CheckpointError
from flowmbpo.models.agent import Agent
from flowmbpo.stages.transfer.columns import adapt, fold_task
from flowmbpo.stages.transfer.layout import EMBEDDING, PARTS, PREFIXES, Outcome, Part, describe
from flowmbpo.stages.transfer.report import TransferReport, TransferRow
from flowmbpo.stages.transfer.source import Architecture, SourceAgent
from flowmbpo.stages.transfer.tasks import TABLE, TaskStart, effective_embedding, match_tasks, take_embeddings

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


@torch.no_grad()  # weights are copied, not learnt
def transfer(source: SourceAgent, target: Agent, *, embedding_from: str | None = None) -> TransferReport:
    """Copy what `source` has learnt into `target`, in place; parts that do not fit stay as they were built.

    - A part of the same meaning (kind, geometry, latent) and hidden widths is loaded. Another number of
      observations, actions or embedding columns is mapped column by column: inputs that the source lacks start at
      zero, so that its function is unchanged, and outputs that it lacks as initialised.
    - Task rows are matched by name (`match_tasks`). Where only the target has embeddings they are as initialised, and
      read by columns of zeros; where only the source has, and the target has one task, that task's embedding is
      folded into the biases.
    - Another encoder or latent leaves everything that reads the latent as built. Dynamics of another kind or geometry
      stay untrained alone.

    Raises ConfigError for an unknown `embedding_from`, CheckpointError for a source that is damaged.
    """
    unknown = [part for part in source.untrained if part not in PARTS]
    if unknown:
        raise CheckpointError(
            f"the checkpoint calls parts untrained that no agent has: {', '.join(unknown)}; an agent's are"
            f" {', '.join(PARTS)}. Import the file again"
        )
    source.check()
    starts = match_tasks(target.spec, source.spec, embedding_from)
    fresh = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    trainable = {name: p.numel() for name, p in target.named_parameters() if p.requires_grad}
    taking = _Taking(view(source, target, starts), describe(Architecture.of(target)), fresh, starts)
    rows = tuple(taking.rows(source.state, trainable))
    target.load_state_dict(taking.result)
    used = {start.source for start in starts}
    unfit = taking.misfits
    return TransferReport(
        rows=rows,
        tasks=starts,
        dropped_tasks=tuple(task.plain_name for task in source.spec.tasks if task.plain_name not in used),
        loaded=sum(row.parameters for row in rows),
        total=sum(trainable.values()),
        to_distill="dynamics" in unfit and "encoder" not in unfit and "dynamics" not in source.untrained,
    )


class _Taking:
    """One transfer: `result` grows to the target's whole new state while the rows say where it comes from."""

    def __init__(
        self, seen: View, parts: Mapping[str, Part], fresh: Mapping[str, Tensor], starts: tuple[TaskStart, ...]
    ) -> None:
        self.seen = seen
        self.parts = parts
        self.fresh = fresh
        self.starts = starts
        self.misfits = misfits(seen.parts, parts, seen.state, fresh, seen.untrained)
        self.result: dict[str, Tensor] = {}

    def rows(self, stored: Mapping[str, Tensor], trainable: Mapping[str, int]) -> Iterator[TransferRow]:
        """Every tensor of the target once, and every one of the source's `stored` ones that was not taken."""
        for part in PARTS:
            groups: dict[tuple[str, str], list[tuple[str, Outcome]]] = {}
            for name in tensor_names(self.fresh, part):
                outcome = self._outcome(part, name)
                self.result[name] = outcome.tensor
                groups.setdefault((outcome.action, outcome.detail), []).append((name, outcome))
            taken: set[str] = set()
            reason = "this agent has none"
            for members in groups.values():
                names, outcome = tuple(name for name, _ in members), members[0][1]
                copied = sum(each.copied for name, each in members if name in trainable)
                yield TransferRow(part, outcome.action, outcome.detail, names, copied)
                if outcome.action == "reinitialised":
                    reason = outcome.detail
                else:
                    taken.update(names)
            left = tuple(name for name in tensor_names(stored, part) if name not in taken)
            if left:
                yield TransferRow(part, "dropped", reason, left, 0)

    def _outcome(self, part: str, name: str) -> Outcome:
        fresh = self.fresh[name]
        if part in self.misfits:
            detail = self.misfits[part] + (", to be distilled" if self._teachable(part) else "")
            return Outcome(fresh, "reinitialised", detail)
        stored = self.seen.state[name]
        if part == EMBEDDING:
            return take_embeddings(stored, fresh, self.starts, folded=self.seen.folded)
        old, new = self.seen.parts[part].axes.get(name, ()), self.parts[part].axes.get(name, ())
        mapped = adapt(stored, fresh, old, new)
        detail = "; ".join(filter(None, (mapped.detail, self.seen.notes.get(name))))
        return Outcome(mapped.tensor, "adapted" if detail else "loaded", detail, mapped.copied)

    def _teachable(self, part: str) -> bool:
        return part == "dynamics" and "encoder" not in self.misfits and part not in self.seen.untrained
