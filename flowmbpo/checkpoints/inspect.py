"""What a checkpoint file holds: ours, an exported folder's, or a published one's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowmbpo.checkpoints.export import NETWORKS, WEIGHTS, is_export, read_export
from flowmbpo.checkpoints.importers.conversion import import_facts
from flowmbpo.checkpoints.importers.foreign import ForeignModel, part_parameters
from flowmbpo.checkpoints.importers.recognition import ForeignFile, foreign_model, read_foreign
from flowmbpo.checkpoints.importers.target import NEWT_TASKS, guess_set
from flowmbpo.checkpoints.load import file_sha256, load, resolve
from flowmbpo.checkpoints.manifest import CheckpointManifest
from flowmbpo.checkpoints.payload import FORMAT, REQUIRED
from flowmbpo.envs.resolve import resolve as resolve_task
from flowmbpo.errors import CheckpointError
from flowmbpo.models.agent import build_meta_agent
from flowmbpo.parity.cost import parameter_counts
from flowmbpo.presets.load import experiment_from_dict


def inspect_checkpoint(path: Path) -> dict[str, Any]:
    """The JSON document of `checkpoint inspect`. Raises CheckpointError, ConfigError."""
    if is_export(path):
        payload = read_export(path)
        file = {"kind": "flowmbpo-export", "file": str(path), "sha256": file_sha256(path / WEIGHTS), "verified": True}
        return file | _own(payload, str(path))
    path = resolve(path)
    if path.name not in CheckpointManifest.read(path.parent).files:
        foreign = read_foreign(path)
        if foreign.content.get("format") != FORMAT:
            return _foreign(foreign)
    loaded = load(path)
    missing = [key for key in REQUIRED if key not in loaded.payload]
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}: not a whole checkpoint. Name another.")
    file = {"kind": "flowmbpo", "file": str(path), "sha256": loaded.sha256, "verified": loaded.verified}
    return file | _own(loaded.payload, str(path))


def _own(payload: dict[str, Any], source: str) -> dict[str, Any]:
    config = experiment_from_dict(payload["config"], source)
    model, spec = config.model, resolve_task(config.task).spec
    parts = parameter_counts(build_meta_agent(config, spec))
    planner = payload.get("planner")
    replay = payload.get("replay")
    return {
        "epoch": int(payload["epoch"]),
        "agent_steps": int(payload["agent_steps"]),
        "env_steps": int(payload["env_steps"]),
        "config": {
            "name": config.name,
            "phase": config.phase,
            "task": spec.label,
            "only": config.task.only,
            "seed": config.seed,
            "dynamics": model.dynamics.kind,
            "actor": config.actor.kind,
            "reward": model.reward.kind,
            "latent_dim": model.latent_dim,
            "task_dim": model.task_dim,
        },
        "parameters": {**parts, "total": sum(parts.values())},
        "replay": None if replay is None else replay["file"],
        "resumable": "optimisers" in payload,
        "planner": None if planner is None else _planner(planner),
        "imported": payload.get("imported"),
        "initial": payload.get("initial"),
    }


def _planner(planner: dict[str, Any]) -> dict[str, Any]:
    described = {name: value for name, value in planner.items() if name not in NETWORKS}
    sizes = {network: sum(t.numel() for t in planner[network].values()) for network in NETWORKS if network in planner}
    return described | {"parameters": sizes}


def _foreign(file: ForeignFile) -> dict[str, Any]:
    """What a published file holds, and what an import would make of it."""
    model = foreign_model(file)
    facts = import_facts(model, keep_planner=True)
    of_newt = model.format == "newt" and model.tasks == NEWT_TASKS
    return {
        "kind": "published",
        "file": str(file.path),
        "sha256": file.sha256,
        **{key: facts.pop(key) for key in ("format", "size")},
        "tasks": model.tasks,
        "task_set": "mt30 (of Newt's own 200 tasks)" if of_newt else guess_set(model) if model.task_dim else None,
        "obs_dim": model.obs_dim,
        "action_dim": model.action_dim,
        "latent_dim": model.latent_dim,
        "task_dim": model.task_dim,
        "bins": model.bins,
        "q_functions": model.networks["q_functions"][0].weight.shape[0] if "q_functions" in model.networks else None,
        "parameters": part_parameters(model),
        "kept": _kept(model),
        **facts,
    }


def _kept(model: ForeignModel) -> list[str]:
    planner = {"policy_prior", "q_functions"}
    names = {"planner" if name in planner else name: None for name in model.parts}
    if not planner <= model.parts.keys():
        names.pop("planner", None)
    return [*names, *model.statistics]
