"""The whole config tree of one experiment. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from flowmbpo.config.actors import ActorConfig, GaussianActorConfig
from flowmbpo.config.base import FrozenConfig, path_part
from flowmbpo.config.model import CriticConfig, ModelConfig
from flowmbpo.config.sections import (
    CheckpointConfig,
    ComputeConfig,
    DataConfig,
    DiagnosticsConfig,
    EvaluationConfig,
    InitialConfig,
    TrackingConfig,
)
from flowmbpo.config.task import TaskConfig
from flowmbpo.config.training import TrainingConfig


class ExperimentConfig(FrozenConfig):
    """Everything that a run needs: stored in the run directory and in every checkpoint.

    `data` is the dataset that it learns from, where it learns offline or is pretrained; `initial` the
    checkpoint that it starts from.
    """

    name: Annotated[str, Field(min_length=1)]
    phase: Annotated[str, Field(min_length=1)]
    description: str = ""
    cost: str = ""
    high_cost: bool = False
    seed: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0  # evaluation seeds lie above
    device: Literal["auto", "cpu", "cuda"] = "auto"
    task: TaskConfig = TaskConfig()
    data: DataConfig | None = None
    initial: InitialConfig | None = None
    model: ModelConfig = ModelConfig()
    actor: ActorConfig = GaussianActorConfig()
    critic: CriticConfig = CriticConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    diagnostics: DiagnosticsConfig = DiagnosticsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    compute: ComputeConfig = ComputeConfig()

    @field_validator("name", "phase")
    @classmethod
    def _is_a_path_part(cls, value: str) -> str:
        return path_part(value)
