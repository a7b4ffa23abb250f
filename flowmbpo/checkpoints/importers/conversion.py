"""Published checkpoints (and exported folders) made into checkpoints of this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flowmbpo.checkpoints.export import FORMAT as EXPORT
from flowmbpo.checkpoints.export import WEIGHTS, is_export, read_export
from flowmbpo.checkpoints.importers.foreign import ForeignModel, part_parameters, size_class
from flowmbpo.checkpoints.importers.layouts import read_foreign
from flowmbpo.checkpoints.importers.mapping import imported_config, map_weights
from flowmbpo.checkpoints.importers.target import choose_purpose
from flowmbpo.checkpoints.load import file_sha256
from flowmbpo.checkpoints.payload import architecture_mismatch
from flowmbpo.checkpoints.save import check_free, write_checkpoint
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.envs.resolve import resolve
from flowmbpo.errors import CheckpointError, ConfigError
from flowmbpo.models.agent import build_meta_agent, seeded_agent
from flowmbpo.parity.flops import parameter_counts
from flowmbpo.presets.load import experiment_from_dict


def import_checkpoint(
    source: Path,
    *,
    out: Path | None = None,
    task_set: str | None = None,
    task: str | None = None,
    keep_planner: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Read `source`, a published file or an exported folder, and write it as a checkpoint of this project.

    `out` defaults to `{config name}.pt` in the current folder. `keep_planner` takes a policy prior and
    Q functions along for `eval --planner mppi`. Returns the JSON document of `checkpoint import`, whose `parameters`
    are the source's. Raises CheckpointError, ConfigError, StorageError.
    """
    if out is not None:
        check_free(out, overwrite=overwrite)
    model = None
    if is_export(source):
        source_sha256 = file_sha256(source / WEIGHTS)
        config, payload = _exported(source, task_set, task)
    elif source.is_dir():
        raise CheckpointError(
            f"{source}: is a folder without model.safetensors. Name a checkpoint file, or a folder that "
            "`flowmbpo checkpoint export` wrote."
        )
    else:
        source_sha256, model = file_sha256(source), read_foreign(source)
        if model is None:
            raise CheckpointError(f"{source}: is a checkpoint of flowmbpo already; use it as it is.")
        config, payload = _converted(source, model, task_set, task, keep_planner)
        payload["imported"] = {"file": source.name, "sha256": source_sha256, **payload["imported"]}
    spec = resolve(config.task).spec
    agent = build_meta_agent(config, spec)
    mismatch = architecture_mismatch(agent.state_dict(), payload["agent"])
    if mismatch is not None:
        raise CheckpointError(f"{source}: {mismatch}. Nothing was imported.")
    target = out or Path(f"{config.name}.pt")
    if out is None:
        check_free(target, overwrite=overwrite)
    imported = payload.get("imported", {})
    return {
        "source": str(source),
        "source_sha256": source_sha256,
        "format": EXPORT if model is None else model.format,
        "size": imported.get("size"),
        "config": config.name,
        "task": config.task.only or spec.label,
        "planner": "planner" in payload,
        "parameters": parameter_counts(agent) if model is None else part_parameters(model),
        "dropped": [] if model is None else imported["dropped"],
        "untrained": imported.get("untrained", []),
        "notes": imported.get("notes", []),
        "checkpoint": str(target),
        "checkpoint_sha256": write_checkpoint(target, payload),
    }


def import_facts(model: ForeignModel, *, keep_planner: bool) -> dict[str, Any]:
    """What an import of a model would say of it: what the file holds and is left out, and parts that start as new."""
    planner = [name for name, part in (("_pi", "policy_prior"), ("_Qs", "q_functions")) if part in model.networks]
    return {
        "format": model.format,
        "size": size_class(model),
        "dropped": [*model.dropped, *([] if keep_planner and len(planner) == 2 else planner)],
        "untrained": [name for name in ("actor", "critic") if name not in model.networks],
        "notes": list(model.notes),
    }


def _converted(
    source: Path, model: ForeignModel, task_set: str | None, task: str | None, keep_planner: bool
) -> tuple[ExperimentConfig, dict[str, Any]]:
    """Config and checkpoint payload: mapped weights, everything else as a new run of the config would begin."""
    try:
        purpose = choose_purpose(model, task_set, task)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    config = imported_config(model, purpose.task)
    with torch.random.fork_rng(devices=[]):
        fresh = seeded_agent(config, resolve(config.task).spec).state_dict()
    facts = import_facts(model, keep_planner=keep_planner)
    agent, planner = map_weights(model, purpose.spec, purpose.rows)
    payload = {
        "config": config.model_dump(mode="json"),
        **{"epoch": 0, "agent_steps": 0, "env_steps": 0},
        "agent": fresh | agent,
        "imported": facts | {"notes": facts["notes"] + list(purpose.notes)},
    }
    return config, payload | ({"planner": planner} if keep_planner and planner is not None else {})


def _exported(source: Path, task_set: str | None, task: str | None) -> tuple[ExperimentConfig, dict[str, Any]]:
    payload = read_export(source)
    config = experiment_from_dict(payload["config"], str(source / "config.yaml"))
    for flag, asked, held in (
        ("--task-set", task_set, config.task.set),
        ("--task", task, config.task.only or config.task.name),
    ):
        if asked is not None and asked != held:
            label = config.task.set or config.task.name
            raise ConfigError(f"{flag} {asked}: {source} was exported for {label}; leave {flag} away")
    return config, payload
