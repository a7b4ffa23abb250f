"""Weights of one agent taken over by another, in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from flowmbpo.errors import CheckpointError
from flowmbpo.json_documents import plain
from flowmbpo.models.agent import Agent
from flowmbpo.stages.transfer.columns import adapt, fold_task
from flowmbpo.stages.transfer.embeddings import TABLE, TaskStart, match_tasks, take_embeddings
from flowmbpo.stages.transfer.layout import EMBEDDING, PARTS, PREFIXES, PartLayout, TakenTensor, bias_of, describe
from flowmbpo.stages.transfer.report import TransferReport, TransferRow
from flowmbpo.stages.transfer.source import Architecture, SourceAgent

READ_THE_LATENT = ("dynamics", "reward", "termination", "decoder", "actor", "critic", "target_critic", "return_scale")
DEPENDS_ON = {"target_critic": ("critic",), "return_scale": ("critic", "reward")}
"""Parts that mean nothing without others: the returns whose spread is tracked are those of reward and critic."""
CHANGE = "dynamics.change."  # the spread that errors are divided by: a matter of the loss, not of the network
UNTRAINED = "never trained in the source"

State = Mapping[str, Tensor]


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
    spec = source.architecture.spec
    starts = match_tasks(target.spec, spec, embedding_from)
    trainable = {name: p.numel() for name, p in target.named_parameters() if p.requires_grad}
    copying = _Transfer(source, target, starts)
    rows = tuple(copying.rows(source.state, trainable))
    target.load_state_dict(copying.result)
    used = {start.source for start in starts}
    return TransferReport(
        rows=rows,
        tasks=starts,
        dropped_tasks=tuple(task.plain_name for task in spec.tasks if task.plain_name not in used),
        loaded=sum(row.parameters for row in rows),
        total=sum(trainable.values()),
        to_distill="dynamics" in copying.misfits and copying.teachable,
    )


class _Transfer:
    """One transfer: `result` grows to the target's whole new state while the rows say where it comes from.

    `state` and `old` are the source's tensors and layout, `notes` says which tensors are no longer as they were
    stored. `folded`: the one task's embedding lies in the biases, and no network reads it any more.
    """

    def __init__(self, source: SourceAgent, target: Agent, starts: tuple[TaskStart, ...]) -> None:
        held, wanted = source.architecture, Architecture.of(target)
        self.starts = starts
        self.fresh = {name: tensor.clone() for name, tensor in target.state_dict().items()}
        self.state, self.notes = dict(source.state), dict[str, str]()
        self.old, self.new = describe(held), describe(wanted)
        self.folded = held.model.task_dim > 0 and wanted.model.task_dim == 0 and len(starts) == 1
        if self.folded:  # the embedding into the biases
            said = f"embedding of {starts[0].source} folded into the bias"
            embedding = self.state[TABLE][starts[0].row]
            embedding = embedding / embedding.norm().clamp(min=1.0)  # as the networks read it
            self.state = fold_task(self.state, self.old, embedding)
            weights = [name for part in self.old.values() for name in part.first_weights if name in self.state]
            self.notes |= {name: said for weight in weights for name in (weight, bias_of(weight))}
            self.old = describe(replace(held, model=held.model.model_copy(update={"task_dim": 0})))
        if target.target_critic is not None and not _tensor_names(self.state, "target_critic"):
            for name in _tensor_names(self.state, "critic"):
                copy = PREFIXES["target_critic"] + name.removeprefix(PREFIXES["critic"])
                self.state[copy] = self.state[name]
                self.notes[copy] = "a copy of the critic: the source has no target network"
        self.misfits = _misfits(self.old, self.new, self.state, self.fresh, source.untrained)
        self.teachable = "encoder" not in self.misfits and "dynamics" not in source.untrained
        self.result: dict[str, Tensor] = {}

    def rows(self, stored: State, trainable: Mapping[str, int]) -> Iterator[TransferRow]:
        """Every tensor of the target once, and every one of the source's `stored` ones that was not taken."""
        for part in PARTS:
            taken = {name: self._take(part, name) for name in _tensor_names(self.fresh, part)}
            self.result |= {name: each.tensor for name, each in taken.items()}
            for action, detail in dict.fromkeys((each.action, each.detail) for each in taken.values()):
                names = tuple(name for name, each in taken.items() if (each.action, each.detail) == (action, detail))
                copied = sum(taken[name].copied for name in names if name in trainable)
                yield TransferRow(part, action, detail, names, copied)
            fresh = {name: each.detail for name, each in taken.items() if each.action == "reinitialised"}
            left = tuple(name for name in _tensor_names(stored, part) if name not in taken or name in fresh)
            if left:
                reason = next(iter(fresh.values()), "this agent has none")
                yield TransferRow(part, "dropped", reason, left, 0)

    def _take(self, part: str, name: str) -> TakenTensor:
        fresh = self.fresh[name]
        if part in self.misfits:
            taught = ", to be distilled" if part == "dynamics" and self.teachable else ""
            return TakenTensor(fresh, "reinitialised", self.misfits[part] + taught)
        if CHANGE in name and name not in self.state:
            return TakenTensor(fresh, "adapted", "measured anew: the source does not scale its errors")
        stored = self.state[name]
        if part == EMBEDDING:
            return take_embeddings(stored, fresh, self.starts, folded=self.folded)
        mapped = adapt(stored, fresh, self.old[part].axes.get(name, ()), self.new[part].axes.get(name, ()))
        detail = "; ".join(filter(None, (mapped.detail, self.notes.get(name))))
        return TakenTensor(mapped.tensor, "adapted" if detail else "loaded", detail, mapped.copied)


def _tensor_names(state: State, part: str) -> list[str]:
    return [name for name in state if name.startswith(PREFIXES[part])]


def _misfits(
    old: Mapping[str, PartLayout], new: Mapping[str, PartLayout], state: State, fresh: State, untrained: tuple[str, ...]
) -> dict[str, str]:
    """The parts of the target (tensors `fresh`) that cannot be taken from the source (`state`), each with its reason.

    The embedding table is judged here only for having been trained: its rows follow the tasks.
    """
    reasons = {EMBEDDING: UNTRAINED} if EMBEDDING in untrained else {}
    for name, part in new.items():
        if name != "encoder" and not _tensor_names(fresh, name):
            continue  # the target has no such part
        needed = [other for other in DEPENDS_ON.get(name, ()) if other in reasons]
        if name in untrained:
            reasons[name] = UNTRAINED
        elif name in READ_THE_LATENT and "encoder" in reasons:
            reasons[name] = f"the latent that it reads is another: {reasons['encoder']}"
        elif own := _own_reason(old[name], part, state, fresh):
            reasons[name] = own
        elif needed:
            reasons[name] = f"goes with the {needed[0]}"
    return reasons


def _own_reason(old: PartLayout, new: PartLayout, state: State, fresh: State) -> str | None:
    theirs, ours = ([name for name in _tensor_names(each, new.name) if CHANGE not in name] for each in (state, fresh))
    if ours and not theirs and old.meaning == new.meaning:
        return "the source has none"
    # Keys that only one side has belong to its kind, which then differs too.
    changed = [
        f"{key} {plain(old.meaning[key])} -> {plain(value)}"
        for key, value in new.meaning.items()
        if key in old.meaning and old.meaning[key] != value
    ]
    if changed:
        return ", ".join(changed)
    if set(theirs) != set(ours):
        return f"layers differ: {len(theirs)} tensors -> {len(ours)}"
    for name in ours:
        before, after = _fixed_shape(state[name], old, name), _fixed_shape(fresh[name], new, name)
        if before != after:
            return f"hidden widths differ: {name.removeprefix(PREFIXES[new.name])} {before} -> {after}"
    return None


def _fixed_shape(tensor: Tensor, part: PartLayout, name: str) -> list[int | str]:
    """The shape, with what follows the task left open."""
    variable = {axis.dim for axis in part.axes.get(name, ())}
    return ["*" if dim in variable else size for dim, size in enumerate(tensor.shape)]
