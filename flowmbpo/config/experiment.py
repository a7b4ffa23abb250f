"""The whole config tree of one experiment. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from flowmbpo.checkpoints.config import CheckpointConfig
from flowmbpo.config.base import FrozenConfig, path_part
from flowmbpo.config.compute import ComputeConfig
from flowmbpo.data.config import DataConfig
from flowmbpo.diagnostics.config import DiagnosticsConfig
from flowmbpo.envs.config import TaskConfig
from flowmbpo.evaluation.config import EvaluationConfig
from flowmbpo.models.actors.config import ActorConfig, GaussianActorConfig
from flowmbpo.models.config import CriticConfig, ModelConfig
from flowmbpo.models.transfer.config import InitialConfig
from flowmbpo.tracking.config import TrackingConfig
from flowmbpo.training.config import TrainingConfig


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
