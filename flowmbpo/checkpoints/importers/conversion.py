"""Which project a file is from, by its names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowmbpo.checkpoints.export import FORMAT as EXPORT
from flowmbpo.checkpoints.export import WEIGHTS, is_export, read_export
from flowmbpo.checkpoints.importers.foreign import ForeignModel
from flowmbpo.checkpoints.importers.mapping import config_name, imported_config, map_agent, map_planner
from flowmbpo.checkpoints.importers.purpose import Purpose, choose_purpose
from flowmbpo.checkpoints.importers.pwm import is_pwm, read_pwm
from flowmbpo.checkpoints.importers.reading import ForeignFile, file_sha256, read_foreign
from flowmbpo.checkpoints.importers.sizes import part_parameters, size_class
from flowmbpo.checkpoints.importers.tdmpc2 import read_tdmpc2, recognise_layout
from flowmbpo.checkpoints.manifest import Manifest
from flowmbpo.checkpoints.payload import FORMAT, VERSION, architecture_mismatch, check_plain
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.envs.resolve import task_spec
from flowmbpo.errors import CheckpointError, ConfigError
from flowmbpo.files import StagedFile
from flowmbpo.models.agent import build_meta_agent, seeded_agent
from flowmbpo.parity.parameters import parameter_counts
from flowmbpo.presets.load import experiment_from_dict

KNOWN = "TD-MPC2 (three layouts), PWM, Newt, or a folder that `flowmbpo checkpoint export` wrote"
_UNCHECKED_NOTE = (
    "The file is of torch's old kind, which stores no checksums: damage to its numbers would not be noticed. Compare "
    "its SHA-256 with one from where it was published."
)


def foreign_model(file: ForeignFile) -> ForeignModel:
    """The model that a file holds. Raises CheckpointError where it is not known or does not fit."""
    model = _recognised(file)
    return model if file.checksums else replace(model, notes=(*model.notes, _UNCHECKED_NOTE))


def _recognised(file: ForeignFile) -> ForeignModel:
    try:
        if is_pwm(file.content):
            return read_pwm(file.content)
        state = file.content.get("model", file.content)
        if isinstance(state, Mapping) and all(isinstance(name, str) for name in state):
            layout = recognise_layout({name.removeprefix("module."): None for name in state})
            if layout is not None:
                return read_tdmpc2(state, layout)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}. Nothing was imported.") from error
    names = state.keys() if isinstance(state, Mapping) else file.content.keys()
    if any(str(name).startswith("_encoder.rgb") for name in names):
        raise CheckpointError(f"{file.path}: is a model of images; those of states can be imported.")
    shown = ", ".join(sorted(map(str, names))[:4]) or "nothing"
    raise CheckpointError(f"{file.path}: is no checkpoint that is known here (it holds {shown}). Known are: {KNOWN}.")


def check_free(path: Path, *, overwrite: bool) -> None:
    """Make sure that `path` may be written, before anything is computed. Raises CheckpointError."""
    if path.suffix != ".pt":
        raise CheckpointError(f"{path}: checkpoints end in .pt. Give --out such a name.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise CheckpointError(f"{path}: exists. Give another --out, or --overwrite to replace it.")
    if path.name in Manifest.read(path.parent).files:
        raise CheckpointError(f"{path}: belongs to the run in that folder. Give another --out.")


def write_checkpoint(path: Path, payload: Mapping[str, Any]) -> str:
    """Write `payload` as a checkpoint that `flowmbpo.checkpoints.load.load` reads; returns its SHA-256.

    Raises StorageError when the disk refuses: nothing half-written stays.
    """
    check_plain(payload, "payload")
    path.parent.mkdir(parents=True, exist_ok=True)
    with StagedFile(path) as staged:
        torch.save({**payload, "replay": None, "format": FORMAT, "version": VERSION}, staged)  # type: ignore[arg-type]
        staged.commit()
    return staged.sha256


TRAINABLE = ("actor", "critic")  # what a published world model may come without
PLANNER_PARTS = ("_pi", "_Qs")


@dataclass(frozen=True)
class ImportOutcome:
    """What `checkpoint import --json` prints. `parameters` are the source's, by part."""

    source: str
    source_sha256: str
    format: str
    size: str | None
    config: str
    task: str
    planner: bool
    parameters: dict[str, int]
    dropped: list[str]
    untrained: list[str]
    notes: list[str]
    checkpoint: str
    checkpoint_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return asdict(self)


def import_checkpoint(
    source: Path,
    *,
    out: Path | None = None,
    task_set: str | None = None,
    task: str | None = None,
    keep_planner: bool = True,
    overwrite: bool = False,
) -> ImportOutcome:
    """Read `source`, a published file or an exported folder, and write it as a checkpoint of this project.

    `out` defaults to `{config name}.pt` in the current folder. `keep_planner` takes a policy prior and
    Q functions along for `eval --planner mppi`. Raises CheckpointError, ConfigError, StorageError.
    """
    if is_export(source):
        return _from_export(source, out, task_set, task, overwrite)
    if out is not None:
        check_free(out, overwrite=overwrite)
    file = read_foreign(_a_file(source))
    if file.content.get("format") == FORMAT:
        raise CheckpointError(f"{source}: is a checkpoint of flowmbpo already; use it as it is.")
    model = foreign_model(file)
    try:
        purpose = choose_purpose(model, task_set, task)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    config = imported_config(model, purpose.task, config_name(model, purpose.task))
    target = out or Path(f"{config.name}.pt")
    if out is None:
        check_free(target, overwrite=overwrite)
    payload = imported_payload(file, model, purpose, config, keep_planner=keep_planner)
    sha256 = write_checkpoint(target, payload)
    imported = payload["imported"]
    return ImportOutcome(
        source=str(source),
        source_sha256=file.sha256,
        format=model.format,
        size=size_class(model),
        config=config.name,
        task=config.task.only or purpose.spec.label,
        planner="planner" in payload,
        parameters=part_parameters(model),
        dropped=imported["dropped"],
        untrained=imported["untrained"],
        notes=imported["notes"],
        checkpoint=str(target),
        checkpoint_sha256=sha256,
    )


def imported_payload(
    file: ForeignFile, model: ForeignModel, purpose: Purpose, config: ExperimentConfig, *, keep_planner: bool
) -> dict[str, Any]:
    """The checkpoint payload: mapped weights, everything else as a new run of `config` would begin."""
    mapped = map_agent(model, purpose.target)
    state = _fresh_state(config)
    mismatch = architecture_mismatch(state, {**state, **mapped})
    if mismatch is not None:
        raise CheckpointError(f"{file.path}: {mismatch}. Nothing was imported.")
    planner = map_planner(model, purpose.target) if keep_planner else None
    payload: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "epoch": 0,
        "env_steps": 0,
        "agent": {**state, **mapped},
        "imported": {
            "format": model.format,
            "size": size_class(model),
            "file": file.path.name,
            "sha256": file.sha256,
            "dropped": dropped_parts(model, keep_planner=keep_planner),
            "untrained": untrained_parts(model),
            "notes": [*model.notes, *purpose.notes],
        },
    }
    return payload if planner is None else {**payload, "planner": planner}


def dropped_parts(model: ForeignModel, *, keep_planner: bool) -> list[str]:
    """Names of what the file holds and an import leaves out."""
    held = [name for name, part in zip(PLANNER_PARTS, (model.pi, model.q), strict=True) if part is not None]
    return [*model.dropped, *([] if keep_planner and len(held) == len(PLANNER_PARTS) else held)]


def untrained_parts(model: ForeignModel) -> list[str]:
    """Parts of the agent that the file does not hold: they start as a new run's would."""
    if model.pwm is None:
        return list(TRAINABLE)
    return [] if model.pwm.actor is not None else ["actor"]


def _fresh_state(config: ExperimentConfig) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        return seeded_agent(config, task_spec(config.task)).state_dict()


def _a_file(source: Path) -> Path:
    if source.is_dir():
        raise CheckpointError(
            f"{source}: is a folder without model.safetensors. Name a checkpoint file, or a folder that "
            "`flowmbpo checkpoint export` wrote."
        )
    return source


def _from_export(
    source: Path, out: Path | None, task_set: str | None, task: str | None, overwrite: bool
) -> ImportOutcome:
    payload = read_export(source)
    config = experiment_from_dict(payload["config"], str(source / "config.yaml"))
    label = config.task.set or config.task.name
    for flag, asked, held in (
        ("--task-set", task_set, config.task.set),
        ("--task", task, config.task.only or config.task.name),
    ):
        if asked is not None and asked != held:
            raise ConfigError(f"{flag} {asked}: {source} was exported for {label}; leave {flag} away")
    mismatch = architecture_mismatch(_fresh_state(config), payload["agent"])
    if mismatch is not None:
        raise CheckpointError(f"{source}: {mismatch}. Fetch it again.")
    target = out or Path(f"{config.name}.pt")
    check_free(target, overwrite=overwrite)
    sha256 = write_checkpoint(target, payload)
    imported = payload.get("imported", {})
    return ImportOutcome(
        source=str(source),
        source_sha256=file_sha256(source / WEIGHTS),
        format=EXPORT,
        size=imported.get("size"),
        config=config.name,
        task=config.task.only or task_spec(config.task).label,
        planner="planner" in payload,
        parameters=parameter_counts(build_meta_agent(config, task_spec(config.task))),
        dropped=[],
        untrained=list(imported.get("untrained", [])),
        notes=list(imported.get("notes", [])),
        checkpoint=str(target),
        checkpoint_sha256=sha256,
    )
