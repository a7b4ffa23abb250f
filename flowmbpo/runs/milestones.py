"""What a run is later asked about: the return it began with, and when it first reached its threshold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowmbpo.config.sections import EvaluationConfig
from flowmbpo.evaluation.returns import Evaluation


class Milestones:
    """Kept across resumes. `start` is None before (or without) an evaluation at the start.

    `returns` are the mean returns of all evaluations and the environment steps that they came after: a
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

    def note(self, env_steps: int, evaluation: Evaluation) -> None:
        """An evaluation after `env_steps` environment steps."""
        self.returns.append((env_steps, evaluation.return_mean))

    @property
    def steps_to_threshold(self) -> int | None:
        """Environment steps after which an evaluation first reached the threshold; None where none did."""
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
