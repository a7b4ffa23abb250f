"""Where a run's weights and experience come from: earlier runs, datasets, and what was taken over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.training.trainer import Trainer

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
        lineage = list(payload.get("lineage", []))
        return cls(config, lineage[:-1], payload.get("initial"), payload.get("data"))

    @property
    def began_with_policy(self) -> bool:
        """Whether the run took over a trained policy, so that it can be asked what it retained of its return."""
        return self.initial is not None and not set(POLICY[:1]) & _reinitialised(self.initial)

    def lineage(self, trainer: Trainer) -> list[dict[str, Any]]:
        """The ancestors, and this run as it stands."""
        own = {
            "name": self.config.name,
            "phase": self.config.phase,
            "seed": self.config.seed,
            "epochs": trainer.epoch,
            "env_steps": trainer.env_steps,
            "data_transitions": 0 if self.data is None else int(self.data["transitions"]),
            "initial_sha256": None if self.initial is None else self.initial["sha256"],
        }
        return [*self.ancestors, own]

    def payload(self, trainer: Trainer) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        found = {"lineage": self.lineage(trainer), "initial": self.initial, "data": self.data}
        return {**found, "warmstart": dict(trainer.warmstarted)}
