"""The whole config tree of one experiment, and what two of them hold differently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from flowmbpo.config.actors import ActorConfig, GaussianActorConfig
from flowmbpo.config.base import FolderName, FrozenConfig
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

    name: FolderName
    phase: FolderName
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

    @property
    def own_training(self) -> TrainingConfig:
        """`training` with the random episodes that `initial` states; without any, its model has no warm-up."""
        episodes = None if self.initial is None else self.initial.random_episodes
        if episodes is None:
            return self.training
        warmup = self.training.warmup_model_updates if episodes > 0 else 0
        return self.training.model_copy(update={"random_episodes": episodes, "warmup_model_updates": warmup})


ABSENT = "(absent)"


@dataclass(frozen=True)
class Difference:
    """One key that two configs hold differently; `(absent)` where a variant lacks the key."""

    key: str
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.a} -> {self.b}"


def flatten(config: ExperimentConfig) -> dict[str, Any]:
    """Every value by its dotted key, as JSON values, in the schema's order; an absent section is None."""
    return dict(_items(config.model_dump(mode="json"), ""))


def _items(data: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def config_differences(a: ExperimentConfig, b: ExperimentConfig) -> list[Difference]:
    """The keys that differ, in the schema's order; empty for equal configs."""
    left, right = flatten(a), flatten(b)
    pairs = [Difference(key, left.get(key, ABSENT), right.get(key, ABSENT)) for key in {**left, **right}]
    return [pair for pair in pairs if pair.a != pair.b]
