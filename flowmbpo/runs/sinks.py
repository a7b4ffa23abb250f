"""Where a run's figures go: the metric sinks of its config, and dumps of what broke."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.files import StagedFile, refused
from flowmbpo.runs.directory import RunDirectory
from flowmbpo.tracking.console import ConsoleSink
from flowmbpo.tracking.sink import JsonlSink, MetricSink, MultiSink


def make_sinks(
    config: ExperimentConfig,
    run_directory: RunDirectory,
    total_epochs: int,
    env_name: str,
    resume_epoch: int | None = None,
    console: bool = True,
) -> MultiSink:
    """metrics.jsonl first, then what `tracking.sinks` names, then the console.

    `env_name` is the task that really runs, `resume_epoch` the epoch of the checkpoint that the run
    goes on from. The W&B id is noted in `run.json`.

    Raises ConfigError on a sink that cannot be used; what was opened by then is closed.
    """
    sinks: list[MetricSink] = []
    try:
        sinks.append(JsonlSink(run_directory.metrics, resume_epoch))
        for name in config.tracking.sinks:
            if name == "wandb":
                from flowmbpo.tracking.wandb import WandbSink

                sinks.append(WandbSink(config, env_name, run_directory.run_id, run_directory.path))
                run_directory.update_status("running", wandb_id=run_directory.run_id)
            else:
                from flowmbpo.tracking.sink import TensorBoardSink

                sinks.append(TensorBoardSink(run_directory.path / "tensorboard", resume_epoch))
        if console:
            title = f"{config.name} seed {config.seed} on {env_name}"
            sinks.append(ConsoleSink(title, total_epochs, resume_epoch or 0, opening=_opening(config, resume_epoch)))
    except BaseException:  # close what was opened, whatever ended it, and pass it on
        MultiSink(sinks).close("failed")
        raise
    return MultiSink(sinks)


def _opening(config: ExperimentConfig, resume_epoch: int | None) -> str:
    """What happens before the first epoch, which at paper scale is minutes without a line."""
    training = config.own_training
    if resume_epoch is not None or not training.random_episodes:
        return ""
    return (
        f"first {training.random_episodes * config.task.num_envs} random episodes and "
        f"{training.warmup_model_updates} model-only updates, then {training.epochs:,} epochs"
    )


@dataclass(frozen=True)
class Dumps:
    """Keeps what a non-finite update was computed from, or what breaks an episode, in `{folder}/{name}.pt`.

    The folder appears with the first one.
    """

    folder: Path

    def __call__(self, name: str, values: Mapping[str, Tensor | str | int]) -> None:
        """Raises StorageError."""
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise refused(self.folder, error) from error
        with StagedFile(self.folder / f"{name}.pt") as staged:
            kept = {key: value.detach().cpu() if isinstance(value, Tensor) else value for key, value in values.items()}
            torch.save(kept, staged)  # type: ignore[arg-type]
            staged.commit()
