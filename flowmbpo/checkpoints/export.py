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

from flowmbpo.checkpoints.load import file_sha256, load
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.envs.resolve import resolve
from flowmbpo.errors import CheckpointError
from flowmbpo.files import write_bytes_atomic
from flowmbpo.models.agent import build_meta_agent
from flowmbpo.parity.flops import parameter_counts
from flowmbpo.presets.load import experiment_from_dict, load_experiment, to_yaml

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
CARD = "README.md"
SUMS = "SHA256SUMS"
FORMAT = "flowmbpo-export"
VERSION = "2"

NETWORKS = ("pi", "q")  # the planner's
RECORDS = ("imported", "initial")  # where weights came from; plain values
COUNTS = ("epoch", "agent_steps", "env_steps")


def is_export(path: Path) -> bool:
    """Whether `path` is an exported folder."""
    return (path / WEIGHTS).is_file()


def export_checkpoint(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Write a checkpoint's (or a run's latest) weights, config and card to `folder`, which must be new or empty.

    Optimisers, random states and the replay buffer stay behind: an export is to be used or started from, not resumed.
    The weights are written last, so that a folder that has them is whole. Returns the JSON document of `checkpoint
    export`. Raises CheckpointError, ConfigError, StorageError.
    """
    loaded = load(checkpoint)
    payload = loaded.payload
    config = experiment_from_dict(payload["config"], str(loaded.path))
    parts = parameter_counts(build_meta_agent(config, resolve(config.task).spec))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists and is not empty. Name a new folder.")
    yaml = to_yaml(config).encode()
    records = {name: payload[name] for name in RECORDS if payload.get(name) is not None}
    planner, states = payload.get("planner"), {"agent.": payload["agent"]}
    if planner is not None:
        records["planner"] = {name: value for name, value in planner.items() if name not in NETWORKS}
        states |= {f"planner.{name}.": planner[name] for name in NETWORKS}
    tensors = {  # safetensors refuses tensors that share memory, and views of it
        prefix + name: tensor.detach().cpu().contiguous().clone()
        for prefix, state in states.items()
        for name, tensor in state.items()
    }
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "config_sha256": hashlib.sha256(yaml).hexdigest(),
        **{name: str(int(payload[name])) for name in COUNTS},
        "records": json.dumps(records),
    }
    weights = safetensors.torch.save(tensors, metadata)
    hashed = ((WEIGHTS, weights), (CONFIG, yaml))
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in hashed)
    folder.mkdir(parents=True, exist_ok=True)
    card = _model_card(payload, config, parts)
    for name, content in ((CONFIG, yaml), (CARD, card.encode()), (SUMS, sums.encode()), (WEIGHTS, weights)):
        write_bytes_atomic(folder / name, content)
    return {
        "checkpoint": str(loaded.path),
        "checkpoint_sha256": loaded.sha256,
        "folder": str(folder),
        "files": sorted(file.name for file in folder.iterdir()),
        "parameters": sum(parts.values()),
        "planner": planner is not None,
    }


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
    if metadata.get("config_sha256") != file_sha256(folder / CONFIG):
        raise CheckpointError(f"{folder / CONFIG}: is not the config that {WEIGHTS} was exported with. Fetch it again.")
    try:
        records = json.loads(metadata["records"])
        counts = {name: int(metadata[name]) for name in COUNTS}
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: its header is incomplete ({error}). Fetch it again.") from error

    def state(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    if "planner" in records:
        records["planner"] |= {name: state(f"planner.{name}.") for name in NETWORKS}
    config = load_experiment(folder / CONFIG).model_dump(mode="json")
    return {"config": config, **counts, "agent": state("agent."), **records}


def _check_sums(folder: Path) -> None:
    """Compare the files with the hashes beside them; flipped bits read like any other numbers."""
    path = folder / SUMS
    if not path.is_file():
        return
    lines = [line.partition("  ") for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    if {name for _, _, name in lines} != {WEIGHTS, CONFIG}:
        raise CheckpointError(f"{path}: does not list {WEIGHTS} and {CONFIG} alone: damaged. Fetch the folder again.")
    for digest, _, name in lines:
        if file_sha256(folder / name) != digest:
            raise CheckpointError(f"{folder / name}: does not have the SHA-256 in {SUMS}: damaged. Fetch it again.")


def _model_card(payload: Mapping[str, Any], config: ExperimentConfig, parts: Mapping[str, int]) -> str:
    """Markdown: what the weights are, what they were trained on, their parts, and how to load them."""
    model = config.model
    embedding = f", task embeddings of {model.task_dim}" if model.task_dim else ""
    summary = (
        f"A latent world model (dynamics `{model.dynamics.kind}`, latent of {model.latent_dim}{embedding}) with a "
        f"`{config.actor.kind}` policy, saved by flowmbpo. {config.description}".rstrip()
    )
    rows = [f"| {name.replace('_', ' ')} | {number:,} |" for name, number in parts.items() if number]
    table = "\n".join(("| part | parameters |", "|---|---:|", *rows, f"| total | {sum(parts.values()):,} |"))
    planner = "" if payload.get("planner") is None else " --planner mppi"
    return f"""# {config.name}

{summary}

## Training

{_training(payload, config)}

## Parts

{table}

## Use

```
flowmbpo checkpoint import THIS_FOLDER --out {config.name}.pt
flowmbpo eval {config.name}.pt{planner}
```

`model.safetensors` holds the agent's tensors as `agent.*` (and a planner's as `planner.pi.*` and `planner.q.*`), \
`config.yaml` all that is needed to build it. Optimisers and replay are not part of it.

## Licence

None is stated: ask whoever trained these weights (and made the data they were trained on).
"""


def _training(payload: Mapping[str, Any], config: ExperimentConfig) -> str:
    what = f"task set `{config.task.set}`" if config.task.set is not None else f"task `{config.task.name}`"
    only = "" if config.task.only is None else f", of which `{config.task.only}` alone runs"
    rows = [
        f"- {what}{only}; phase `{config.phase}`; seed {config.seed}",
        f"- {int(payload['epoch']):,} epochs, {int(payload['agent_steps']):,} agent steps "
        f"({int(payload['env_steps']):,} environment steps, action repeat included)",
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
