"""Weights of one agent taken over by another, in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from flowmbpo.errors import CheckpointError
from flowmbpo.models.agent import Agent
from flowmbpo.stages.transfer.columns import adapt
from flowmbpo.stages.transfer.fit import View, misfits, tensor_names, view
from flowmbpo.stages.transfer.layout import EMBEDDING, PARTS, Outcome, Part, describe
from flowmbpo.stages.transfer.report import TransferReport, TransferRow
from flowmbpo.stages.transfer.source import Architecture, SourceAgent
from flowmbpo.stages.transfer.tasks import TaskStart, match_tasks, take_embeddings


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
