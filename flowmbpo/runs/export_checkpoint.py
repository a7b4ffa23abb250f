"""A checkpoint of a run, written as a folder for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowmbpo.checkpoints.export import write_export
from flowmbpo.checkpoints.load import load
from flowmbpo.envs.resolve import task_spec
from flowmbpo.models.agent import build_meta_agent
from flowmbpo.parity.parameters import parameter_counts
from flowmbpo.presets.load import experiment_from_dict


def export_checkpoint(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Export a checkpoint file, or a run's latest, to `folder`; the JSON document of `checkpoint export`.

    Raises CheckpointError, ConfigError, StorageError.
    """
    loaded = load(checkpoint)
    config = experiment_from_dict(loaded.payload["config"], str(loaded.path))
    parts = parameter_counts(build_meta_agent(config, task_spec(config.task)))
    write_export(folder, loaded.payload, config, parts)
    return {
        "checkpoint": str(loaded.path),
        "checkpoint_sha256": loaded.sha256,
        "folder": str(folder),
        "files": sorted(file.name for file in folder.iterdir()),
        "parameters": sum(parts.values()),
        "planner": loaded.payload.get("planner") is not None,
    }
