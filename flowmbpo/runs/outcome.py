"""What a training run comes to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class TrainOutcome:
    """What `train --json` prints. `final_*` are of the latest weights on fresh seeds, never a best.

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

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return asdict(self)
