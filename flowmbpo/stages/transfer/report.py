"""What a transfer took, adapted, left as initialised and dropped. Every tensor is accounted for once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flowmbpo.stages.transfer.embeddings import TaskStart
from flowmbpo.stages.transfer.layout import PREFIXES, Action


@dataclass(frozen=True)
class TransferRow:
    """What happened to a group of tensors of one part.

    `tensors` are names in the target's state dict (for `dropped`, in the source's); `parameters` counts the trainable
    scalars that came from the source.
    """

    part: str
    action: Action
    detail: str
    tensors: tuple[str, ...]
    parameters: int

    @property
    def group(self) -> str:
        """The tensor's name, or how many there are."""
        names = self.tensors
        return names[0].removeprefix(PREFIXES[self.part]) if len(names) == 1 else f"{len(names)} tensors"


@dataclass(frozen=True)
class TransferReport:
    """The rows, where each task starts, tasks of the source that are gone, and parameters taken of all trainable."""

    rows: tuple[TransferRow, ...]
    tasks: tuple[TaskStart, ...]
    dropped_tasks: tuple[str, ...]
    loaded: int
    total: int
    to_distill: bool
    """Whether the dynamics are untrained while the source's, on the same latent, could teach them."""

    def parts(self, action: Action) -> tuple[str, ...]:
        """Parts that have a row of `action`, in their order."""
        return tuple(dict.fromkeys(row.part for row in self.rows if row.action == action))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {
            "rows": [{"part": row.part, "group": row.group, **asdict(row)} for row in self.rows],
            "tasks": [{"task": start.task, "source": start.source, "how": start.how} for start in self.tasks],
        }

    def lines(self) -> list[str]:
        """For people: totals, one line per row, and the tasks that the source never saw."""
        fresh = {(row.part, row.detail) for row in self.rows if row.action == "reinitialised"}
        new = [start for start in self.tasks if start.how != "known"]
        return [
            f"{self.loaded:,} of {self.total:,} parameters taken over",
            *(
                f"{row.part}: {row.group} {row.action}" + (f" ({row.detail})" if row.detail else "")
                for row in self.rows
                if row.action != "dropped" or (row.part, row.detail) not in fresh  # a line tells what stands there now
            ),
            f"tasks: {len(self.tasks) - len(new)} of {len(self.tasks)} known to the source",
            *(f"task {start.task}: new, starts as {start.source} ({start.how})" for start in new),
            *([f"tasks left behind: {', '.join(self.dropped_tasks)}"] if self.dropped_tasks else []),
        ]
