"""What a checkpoint file holds: ours, an exported folder's, or a published one's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowmbpo.checkpoints.export import COUNTS, NETWORKS, RECORDS, WEIGHTS, is_export, read_export
from flowmbpo.checkpoints.importers.conversion import import_facts
from flowmbpo.checkpoints.importers.foreign import ForeignModel, part_parameters
from flowmbpo.checkpoints.importers.layouts import read_foreign
from flowmbpo.checkpoints.importers.target import NEWT_TASKS, guess_set
from flowmbpo.checkpoints.load import file_sha256, load, read_manifest, resolve
from flowmbpo.checkpoints.payload import missing_keys
from flowmbpo.envs.resolve import resolve as resolve_task
from flowmbpo.errors import CheckpointError
from flowmbpo.models.agent import build_meta_agent
from flowmbpo.parity.flops import parameter_counts
from flowmbpo.presets.load import experiment_from_dict


def inspect_checkpoint(path: Path) -> dict[str, Any]:
    """The JSON document of `checkpoint inspect`. Raises CheckpointError, ConfigError."""
    if is_export(path):
        payload = read_export(path)
        file = {"kind": "flowmbpo-export", "file": str(path), "sha256": file_sha256(path / WEIGHTS), "verified": True}
        return file | _own(payload, str(path))
    path = resolve(path)
    if path.name not in read_manifest(path.parent):
        foreign = read_foreign(path)
        if foreign is not None:
            return {"kind": "published", "file": str(path), "sha256": file_sha256(path), **_foreign(foreign)}
    loaded = load(path)
    if missing := missing_keys(loaded.payload):
        raise CheckpointError(f"{path}: lacks {missing}: not a whole checkpoint. Name another.")
    file = {"kind": "flowmbpo", "file": str(path), "sha256": loaded.sha256, "verified": loaded.verified}
    return file | _own(loaded.payload, str(path))


def _own(payload: dict[str, Any], source: str) -> dict[str, Any]:
    config = experiment_from_dict(payload["config"], source)
    model, spec = config.model, resolve_task(config.task).spec
    parts = parameter_counts(build_meta_agent(config, spec))
    planner = payload.get("planner") or {}
    described = {name: value for name, value in planner.items() if name not in NETWORKS}
    sizes = {name: sum(t.numel() for t in planner[name].values()) for name in NETWORKS if name in planner}
    replay = payload.get("replay")
    return {
        **{count: int(payload[count]) for count in COUNTS},
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
        "planner": {**described, "parameters": sizes} if planner else None,
        **{record: payload.get(record) for record in RECORDS},
    }


def _foreign(model: ForeignModel) -> dict[str, Any]:
    counts = part_parameters(model)
    planner = {"policy_prior", "q_functions"}
    kept = {"planner" if name in planner else name: None for name in counts if name != "total"}
    if not planner <= counts.keys():
        kept.pop("planner", None)
    facts = import_facts(model, keep_planner=True)
    of_newt = model.format == "newt" and model.tasks == NEWT_TASKS
    return {
        **{key: facts.pop(key) for key in ("format", "size")},
        "tasks": model.tasks,
        "task_set": "mt30 (of Newt's own 200 tasks)" if of_newt else guess_set(model) if model.task_dim else None,
        **{width: vars(model)[width] for width in ("obs_dim", "action_dim", "latent_dim", "task_dim", "bins")},
        "q_functions": model.networks["q_functions"][0].weight.shape[0] if "q_functions" in model.networks else None,
        "parameters": counts,
        "kept": [*kept, *model.statistics],
        **facts,
    }
