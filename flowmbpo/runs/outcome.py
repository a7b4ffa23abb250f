"""What a training run comes to, and what is kept for that on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flowmbpo.config.sections import EvaluationConfig
from flowmbpo.evaluation.results import Evaluation
from flowmbpo.json_documents import Document


@dataclass(frozen=True)
class TrainOutcome(Document):
    """What `train --json` prints. `final_*` are of the latest weights on fresh seeds, never a best.

    `agent_steps` are decisions over all environments, `env_steps` the simulators' control steps (action repeat
    included). `start` is what the run began with (mean return, and per task) and `retained_percent` the final return
    over it; `agent_steps_to_threshold` the agent steps after which an evaluation first reached
    `evaluation.threshold`. `lineage` lists the runs that led here, oldest first and this one last, with
    their steps and the transitions of their datasets; `data` is this run's own dataset.
    `faults` counts the training episodes that the simulator broke and that were thrown away; `findings` name
    what the light diagnostics warned of, and `diagnostics_s` are the seconds they took beside `wall_s`.
    """

    run_dir: str
    status: Literal["done", "interrupted"]
    agent_steps: int
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
    agent_steps_to_threshold: int | None = None
    lineage: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] | None = None


class Milestones:
    """Kept across resumes. `start` is None before (or without) an evaluation at the start.

    `returns` are the mean returns of all evaluations and the agent steps that they came after: a
    threshold that a resume changes is judged on those before it too.
    """

    def __init__(self, config: EvaluationConfig, state: Mapping[str, Any] | None = None) -> None:
        self.config = config
        saved = state or {}
        self.start: dict[str, Any] | None = saved.get("start")
        self.returns: list[tuple[int, float]] = [(int(steps), float(mean)) for steps, mean in saved.get("returns", [])]

    @property
    def wants_start(self) -> bool:
        """Whether the evaluation at the start is still to be made."""
        return self.config.at_start and self.start is None

    def begin(self, evaluation: Evaluation) -> None:
        """Keep the evaluation at the start; it may reach the threshold by itself."""
        self.start = {"return_mean": evaluation.return_mean, "per_task": evaluation.per_task()}
        self.note(0, evaluation)

    def note(self, agent_steps: int, evaluation: Evaluation) -> None:
        """An evaluation after `agent_steps` agent steps."""
        self.returns.append((agent_steps, evaluation.return_mean))

    @property
    def agent_steps_to_threshold(self) -> int | None:
        """Agent steps after which an evaluation first reached the threshold; None where none did."""
        threshold = self.config.threshold
        if threshold is None:
            return None
        return next((steps for steps, mean in self.returns if mean >= threshold), None)

    def retained_percent(self, final: Evaluation | None) -> float | None:
        """The final mean return in percent of that at the start; None where the start earned nothing."""
        if final is None or self.start is None or self.start["return_mean"] <= 0.0:
            return None
        return 100.0 * final.return_mean / float(self.start["return_mean"])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"start": self.start, "returns": [list(each) for each in self.returns]}
