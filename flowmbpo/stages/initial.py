"""The checkpoint that a run starts from: loaded, checked, and taken over into the run's own agent."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flowmbpo.checkpoints.load import Loaded, load
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.sections import InitialConfig
from flowmbpo.data.batch import Batch
from flowmbpo.envs.resolve import task_spec
from flowmbpo.errors import CheckpointError, ConfigError
from flowmbpo.models.agent import Agent
from flowmbpo.presets.load import experiment_from_dict
from flowmbpo.stages.distill import distill_dynamics, teacher_model
from flowmbpo.stages.lineage import untrained_parts
from flowmbpo.stages.transfer.agent import transfer
from flowmbpo.stages.transfer.report import TransferReport
from flowmbpo.stages.transfer.source import Architecture, SourceAgent, adopt_widths
from flowmbpo.training.trainer import Warmstart

log = logging.getLogger("flowmbpo")

ENCODER = "encoder"


@dataclass(frozen=True)
class Initial:
    """A loaded checkpoint, as the beginning of another run."""

    options: InitialConfig
    loaded: Loaded
    config: ExperimentConfig
    source: SourceAgent

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """The runs that led to these weights, oldest first."""
        payload = self.loaded.payload
        if "lineage" in payload or "imported" in payload:  # what a foreign file was trained on is not ours to count
            return list(payload.get("lineage", []))
        config = self.config  # of version 0.2, which knew no stages: one run, from scratch
        own = {"name": config.name, "phase": config.phase, "seed": config.seed, "data_transitions": 0}
        counts = {"epochs": int(payload["epoch"]), "env_steps": int(payload["env_steps"])}
        return [{**own, **counts, "initial_sha256": None}]

    def adopt(self, config: ExperimentConfig) -> ExperimentConfig:
        """The run's config with the file's hash, and with solved widths as the checkpoint has them."""
        model, actor = adopt_widths(config.model, config.actor, task_spec(config.task), self.source.architecture)
        options = self.options.model_copy(update={"sha256": self.loaded.sha256})
        return config.model_copy(update={"model": model, "actor": actor, "initial": options})

    def take_over(self, agent: Agent) -> TransferReport:
        """Copy what fits into `agent`. Raises ConfigError where not even the encoder does."""
        report = transfer(self.source, agent, embedding_from=self.options.embedding_from)
        unfit = [row.detail for row in report.rows if row.part == ENCODER and row.action == "reinitialised"]
        if unfit:
            raise ConfigError(
                f"--from {self.options.checkpoint}: nothing of it fits this run: {unfit[0]}. Take a preset of the "
                "same model.latent_dim, model.simnorm_dim and model.encoder, or leave --preset away to use the "
                "checkpoint's own config"
            )
        return report

    def warmstart(self, agent: Agent, config: ExperimentConfig, report: TransferReport) -> Warmstart | None:
        """What distils the checkpoint's dynamics into `agent`'s, where they are of another kind."""
        updates = self.options.distill_updates
        if not report.to_distill or updates == 0:
            return None

        def run(batches: Callable[[], Batch], generator: torch.Generator) -> dict[str, Any]:
            teacher = teacher_model(self.source, agent, embedding_from=self.options.embedding_from)
            log.info("distilling the checkpoint's dynamics into this run's: %d updates", updates)
            result = distill_dynamics(
                teacher,
                agent.world_model,
                batches,
                updates=updates,
                config=config.training,
                generator=generator,
            )
            for line in result.lines():
                log.info("%s", line)
            return result.to_dict()

        return run


def load_initial(options: InitialConfig) -> Initial:
    """The checkpoint that `options` name.

    Raises CheckpointError for a missing, damaged or foreign file, or one that has changed since the run began.
    """
    loaded = load(Path(options.checkpoint).expanduser())
    if options.sha256 is not None and loaded.sha256 != options.sha256:
        raise CheckpointError(
            f"{loaded.path}: is not the file that the run began with (its SHA-256 differs): "
            "that run has gone on, or it was replaced"
        )
    kept = {key: value for key, value in loaded.payload.items() if key != "optimisers"}  # twice the weights' memory
    loaded = replace(loaded, payload=kept)
    config = experiment_from_dict(loaded.payload["config"], str(loaded.path))
    spec, normalization = task_spec(config.task), config.training.reward_normalization
    architecture = Architecture(config.model, config.actor, config.critic, spec, normalization)
    source = SourceAgent(architecture, loaded.payload["agent"], untrained_parts(loaded.payload))
    return Initial(options, loaded, config, source)
