"""What a run starts from: the checkpoint that is taken over, and the runs and datasets behind it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from flowmbpo.checkpoints.load import Loaded, load
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.sections import InitialConfig
from flowmbpo.data.batch import Batch
from flowmbpo.envs.resolve import resolve
from flowmbpo.errors import CheckpointError, ConfigError
from flowmbpo.models.agent import Agent
from flowmbpo.presets.load import experiment_from_dict
from flowmbpo.spec import EnvSpec
from flowmbpo.stages.distill import distill_dynamics, teacher_model
from flowmbpo.stages.transfer.agent import transfer
from flowmbpo.stages.transfer.report import TransferReport
from flowmbpo.stages.transfer.source import Architecture, SourceAgent, adopt_widths
from flowmbpo.training.learner import Warmstart

log = logging.getLogger("flowmbpo")
POLICY = ("actor", "critic")  # parts of an agent that a world model alone is trained without


def untrained_parts(payload: Mapping[str, Any]) -> tuple[str, ...]:
    """Parts of a checkpoint's agent that are as some run initialised them, and no run has trained."""
    imported = tuple(payload.get("imported", {}).get("untrained", ()))
    if payload["config"].get("training", {}).get("learn") != "model":
        return imported
    taken = payload.get("initial")
    return POLICY if taken is None else tuple(part for part in POLICY if part in _reinitialised(taken))


def _reinitialised(initial: Mapping[str, Any]) -> set[str]:
    return {row["part"] for row in initial["transfer"]["rows"] if row["action"] == "reinitialised"}


@dataclass(frozen=True)
class Origins:
    """`ancestors` are the runs before this one, oldest first; `initial` tells what was taken over from the last.

    `data` is the dataset that the run learns from: its name, fingerprint, episodes and transitions (of the
    tasks that the run has). Everything is plain, and kept in every checkpoint.
    """

    config: ExperimentConfig
    ancestors: list[dict[str, Any]] = field(default_factory=list)
    initial: dict[str, Any] | None = None
    data: dict[str, Any] | None = None

    @classmethod
    def restored(cls, config: ExperimentConfig, payload: Mapping[str, Any]) -> Origins:
        """Those of a run that goes on from the checkpoint `payload`."""
        return cls(config, list(payload.get("lineage", []))[:-1], payload.get("initial"), payload.get("data"))

    @property
    def began_with_policy(self) -> bool:
        """Whether the run took over a trained policy, so that it can be asked what it retained of its return."""
        return self.initial is not None and "actor" not in _reinitialised(self.initial)

    def lineage(self, epoch: int, steps: Mapping[str, int]) -> list[dict[str, Any]]:
        """The ancestors, and this run as it stands, after `steps` (`agent_steps` and `env_steps`)."""
        own = {
            "name": self.config.name,
            "phase": self.config.phase,
            "seed": self.config.seed,
            "epochs": epoch,
            **steps,
            "data_transitions": 0 if self.data is None else int(self.data["transitions"]),
            "initial_sha256": None if self.initial is None else self.initial["sha256"],
        }
        return [*self.ancestors, own]


@dataclass(frozen=True)
class Initial:
    """A loaded checkpoint, as the beginning of another run."""

    options: InitialConfig
    loaded: Loaded
    config: ExperimentConfig
    source: SourceAgent

    def adopt(self, config: ExperimentConfig, spec: EnvSpec) -> ExperimentConfig:
        """The run's config with the file's hash, and with solved widths as the checkpoint has them."""
        model, actor = adopt_widths(config.model, config.actor, spec, self.source.architecture)
        options = self.options.model_copy(update={"sha256": self.loaded.sha256})
        return config.model_copy(update={"model": model, "actor": actor, "initial": options})

    def take_over(self, agent: Agent) -> TransferReport:
        """Copy what fits into `agent`. Raises ConfigError where not even the encoder does."""
        report = transfer(self.source, agent, embedding_from=self.options.embedding_from)
        rows = [row for row in report.rows if row.part == "encoder" and row.action in ("reinitialised", "dropped")]
        if rows:
            raise ConfigError(
                f"--from {self.options.checkpoint}: nothing of it fits this run: {rows[0].detail}. Take a preset of "
                "the same model.latent_dim, model.simnorm_dim and model.encoder, or leave --preset away to use the "
                "checkpoint's own config"
            )
        return report

    def record(self, report: TransferReport) -> dict[str, Any]:
        """What the run's checkpoints and reports say of it."""
        payload = self.loaded.payload
        return {
            "checkpoint": str(self.loaded.path),
            "sha256": self.loaded.sha256,
            "name": self.config.name,
            "phase": self.config.phase,
            "transfer": report.to_dict(),
            "optimisers": "reinitialised",
            **{part: "none" if payload.get(part) is None else "dropped" for part in ("replay", "planner")},
        }

    def warmstart(self, agent: Agent, config: ExperimentConfig, report: TransferReport) -> Warmstart | None:
        """What distils the checkpoint's dynamics into `agent`'s, where they are of another kind."""
        updates = self.options.distill_updates
        if not report.to_distill or updates == 0:
            return None

        def run(batches: Callable[[], Batch], generator: torch.Generator) -> dict[str, Any]:
            teacher = teacher_model(self.source, agent, embedding_from=self.options.embedding_from)
            log.info("distilling the checkpoint's dynamics into this run's: %d updates", updates)
            result = distill_dynamics(
                teacher, agent.world_model, batches, updates=updates, config=config.training, generator=generator
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
    spec, normalization = resolve(config.task).spec, config.training.reward_normalization
    architecture = Architecture(config.model, config.actor, config.critic, spec, normalization)
    source = SourceAgent(architecture, loaded.payload["agent"], untrained_parts(loaded.payload))
    return Initial(options, loaded, config, source)
