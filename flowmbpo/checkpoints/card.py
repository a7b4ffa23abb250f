"""The model card of an exported checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowmbpo.config.experiment import ExperimentConfig


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
