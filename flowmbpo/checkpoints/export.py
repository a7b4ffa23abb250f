"""A checkpoint as a folder for others: safetensors, its config, a model card, and their hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.errors import CheckpointError
from flowmbpo.files import write_bytes_atomic
from flowmbpo.presets.load import load_experiment, to_yaml


def model_card(payload: Mapping[str, Any], config: ExperimentConfig, parts: Mapping[str, int]) -> str:
    """Markdown: what the weights are, what they were trained on, their parts, and how to load them."""
    sections = [
        f"# {config.name}",
        _summary(config),
        "## Training",
        _training(payload, config),
        "## Parts",
        _parts(parts),
        "## Use",
        _use(payload, config),
        "## Licence",
        "None is stated: ask whoever trained these weights (and made the data they were trained on).",
    ]
    return "\n\n".join(sections) + "\n"


def _summary(config: ExperimentConfig) -> str:
    model = config.model
    embedding = f", task embeddings of {model.task_dim}" if model.task_dim else ""
    return (
        f"A latent world model (dynamics `{model.dynamics.kind}`, latent of {model.latent_dim}{embedding}) with a "
        f"`{config.actor.kind}` policy, saved by flowmbpo. {config.description}".rstrip()
    )


def _training(payload: Mapping[str, Any], config: ExperimentConfig) -> str:
    what = f"task set `{config.task.set}`" if config.task.set is not None else f"task `{config.task.name}`"
    only = "" if config.task.only is None else f", of which `{config.task.only}` alone runs"
    rows = [
        f"- {what}{only}; phase `{config.phase}`; seed {config.seed}",
        f"- {int(payload['epoch']):,} epochs, {int(payload['env_steps']):,} environment steps",
    ]
    if config.data is not None:
        rows.append(f"- learnt from the dataset `{config.data.path.rstrip('/').rpartition('/')[2]}`")
    imported = payload.get("imported")
    if imported is not None:
        rows.append(f"- imported from `{imported['file']}` ({imported['format']}, SHA-256 `{imported['sha256']}`)")
        if imported["untrained"]:
            rows.append(f"- **untrained**, freshly initialised: {', '.join(imported['untrained'])}")
        rows += [f"- {note}" for note in imported["notes"]]
    return "\n".join(rows)


def _parts(parts: Mapping[str, int]) -> str:
    rows = [f"| {name.replace('_', ' ')} | {number:,} |" for name, number in parts.items() if number]
    total = f"| total | {sum(parts.values()):,} |"
    return "\n".join(["| part | parameters |", "|---|---:|", *rows, total])


def _use(payload: Mapping[str, Any], config: ExperimentConfig) -> str:
    planner = "" if payload.get("planner") is None else " --planner mppi"
    name = f"{config.name}.pt"
    return (
        "```\n"
        f"flowmbpo checkpoint import THIS_FOLDER --out {name}\n"
        f"flowmbpo eval {name}{planner}\n"
        "```\n\n"
        "`model.safetensors` holds the agent's tensors as `agent.*` (and a planner's as `planner.pi.*` and "
        "`planner.q.*`), `config.yaml` all that is needed to build it. Optimisers and replay are not part of it."
    )


WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
CARD = "README.md"
SUMS = "SHA256SUMS"
FORMAT = "flowmbpo-export"
VERSION = "1"

_AGENT = "agent."
_NETWORKS = ("pi", "q")  # the planner's
_RECORDS = ("imported", "initial")  # where weights came from; plain values


def is_export(path: Path) -> bool:
    """Whether `path` is an exported folder."""
    return (path / WEIGHTS).is_file()


def write_export(folder: Path, payload: Mapping[str, Any], config: ExperimentConfig, parts: Mapping[str, int]) -> None:
    """Write a checkpoint's weights, config and card to `folder`, which must be new or empty.

    `parts` are the parameters by part, for the card. Optimisers, random states and the replay buffer stay
    behind: an export is to be used or started from, not resumed. The weights are written last, so that a
    folder that has them is whole. Raises CheckpointError, StorageError.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists and is not empty. Name a new folder.")
    yaml = to_yaml(config).encode()
    weights = safetensors.torch.save(_tensors(payload), _metadata(payload, yaml))
    sums = {WEIGHTS: weights, CONFIG: yaml}
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(folder / CONFIG, yaml)
    write_bytes_atomic(folder / CARD, model_card(payload, config, parts).encode())
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sums.items()]
    write_bytes_atomic(folder / SUMS, "".join(lines).encode())
    write_bytes_atomic(folder / WEIGHTS, weights)


def read_export(folder: Path) -> dict[str, Any]:
    """The checkpoint payload of an exported folder, every tensor bit for bit.

    Raises CheckpointError where a file is missing, altered or foreign, ConfigError for a config that is not valid.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: has no {name}. Name a folder that `flowmbpo checkpoint export` wrote.")
    _check_sums(folder)
    try:
        with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: cannot be read ({error}): damaged. Fetch it again.") from error
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise CheckpointError(
            f"{folder / WEIGHTS}: is no `{FORMAT}` of version {VERSION} (format {metadata.get('format')!r}, version "
            f"{metadata.get('version')!r}). Name a folder that `flowmbpo checkpoint export` wrote."
        )
    if metadata.get("config_sha256") != hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest():
        raise CheckpointError(f"{folder / CONFIG}: is not the config that {WEIGHTS} was exported with. Fetch it again.")
    return _payload(folder, metadata, tensors)


def _tensors(payload: Mapping[str, Any]) -> dict[str, Tensor]:
    found = {f"{_AGENT}{name}": tensor for name, tensor in payload["agent"].items()}
    planner = payload.get("planner")
    if planner is not None:
        for network in _NETWORKS:
            found |= {f"planner.{network}.{name}": tensor for name, tensor in planner[network].items()}
    # safetensors refuses tensors that share memory, and views of it.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}


def _metadata(payload: Mapping[str, Any], yaml: bytes) -> dict[str, str]:
    planner = payload.get("planner")
    records = {name: payload[name] for name in _RECORDS if payload.get(name) is not None}
    if planner is not None:
        records["planner"] = {name: value for name, value in planner.items() if name not in _NETWORKS}
    return {
        "format": FORMAT,
        "version": VERSION,
        "config_sha256": hashlib.sha256(yaml).hexdigest(),
        "epoch": str(int(payload["epoch"])),
        "env_steps": str(int(payload["env_steps"])),
        "records": json.dumps(records),
    }


def _payload(folder: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    try:
        records = json.loads(metadata["records"])
        counts = {name: int(metadata[name]) for name in ("epoch", "env_steps")}
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: its header is incomplete ({error}). Fetch it again.") from error
    payload: dict[str, Any] = {
        "config": load_experiment(folder / CONFIG).model_dump(mode="json"),
        **counts,
        "agent": _starting_with(tensors, _AGENT),
        **records,
    }
    if "planner" in records:
        networks = {name: _starting_with(tensors, f"planner.{name}.") for name in _NETWORKS}
        payload["planner"] = {**records["planner"], **networks}
    return payload


def _starting_with(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_sums(folder: Path) -> None:
    """Compare the files with the hashes beside them; flipped bits read like any other numbers."""
    path = folder / SUMS
    if not path.is_file():
        return
    listed = set()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        if name not in (WEIGHTS, CONFIG):
            raise CheckpointError(f"{path}: names {name!r}, which belongs to no export. Fetch the folder again.")
        with open(folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise CheckpointError(f"{folder / name}: does not have the SHA-256 in {SUMS}: damaged. Fetch it again.")
        listed.add(name)
    if listed != {WEIGHTS, CONFIG}:
        raise CheckpointError(f"{path}: does not list {WEIGHTS} and {CONFIG}: truncated. Fetch the folder again.")
