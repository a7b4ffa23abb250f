"""What a training run comes to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class TrainOutcome:
    """What `train --json` prints. `final_*` are of the latest weights on fresh seeds, never a best.

    `start` is what the run began with (mean return, and per task) and `retained_percent` the final return
    over it; `steps_to_threshold` the environment steps after which an evaluation first reached
    `evaluation.threshold`. `lineage` lists the runs that led here, oldest first and this one last, with
    their environment steps and the transitions of their datasets; `data` is this run's own dataset.
    `faults` counts the training episodes that the simulator broke and that were thrown away; `findings` name
    what the light diagnostics warned of, and `diagnostics_s` are the seconds they took beside `wall_s`.
    """

    run_dir: str
    status: Literal["done", "interrupted"]
    env_steps: int
    epochs: int
    final_return_mean: float | None
    final_return_std: float | None
    eval_episodes: int
    checkpoint: str
    wall_s: float
    cpu_s: float
    nonfinite: int
    faults: int = 0
    findings: tuple[str, ...] = ()
    diagnostics_s: float = 0.0
    per_task: dict[str, dict[str, float | int | None]] | None = None
    start: dict[str, Any] | None = None
    retained_percent: float | None = None
    steps_to_threshold: int | None = None
    lineage: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return asdict(self)
