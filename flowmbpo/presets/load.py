"""From a preset's name or file and its overrides to a typed, complete config, and back to YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.planner import MPPIConfig
from flowmbpo.presets.library import Library, Preset
from flowmbpo.presets.overrides import config_name, parse_settings
from flowmbpo.presets.schema import merge_documents, validate
from flowmbpo.presets.yaml import KeyPath, PresetDocument, dump_document


@dataclass(frozen=True)
class PresetInfo:
    """What `presets list` says about a preset."""

    name: str
    family: str
    phase: str
    task: str
    description: str
    cost: str


class Flags(TypedDict, total=False):
    """The command line's own flags, each None where it is not given; no sinks to `track` turn tracking off."""

    task: str | None
    seed: int | None
    device: str | None
    track: Sequence[str] | None


def load_experiment(preset: str | Path, overrides: Sequence[str] = (), **flags: Unpack[Flags]) -> ExperimentConfig:
    """The resolved config of `preset` (a shipped name or a file) with `overrides` ('key=value').

    The `flags` win over the preset and the overrides. A file without a `name` is named after itself. Where an override
    changes the experiment, the name gets `+` and six hex digits (see `config_name`). Raises ConfigError.
    """
    library = Library()
    document, source = library.resolve(library.find(preset))
    with_flags = merge_documents(document, _flags(**flags), ExperimentConfig)
    if not overrides:
        return validate(with_flags, source, ExperimentConfig)
    changed = merge_documents(document, parse_settings(overrides), ExperimentConfig)
    config = validate(merge_documents(changed, _flags(**flags), ExperimentConfig), source, ExperimentConfig)
    return config.model_copy(update={"name": config_name(validate(with_flags, source, ExperimentConfig), config)})


def override(config: ExperimentConfig, overrides: Sequence[str] = (), **flags: Unpack[Flags]) -> ExperimentConfig:
    """A resolved config with overrides and flags applied; its name stays. Raises ConfigError.

    For a run that goes on in its own directory; a new run gets its name from `load_experiment`.
    """
    document = PresetDocument(config.model_dump(mode="json"))
    for delta in (parse_settings(overrides), _flags(**flags)):
        document = merge_documents(document, delta, ExperimentConfig)
    return validate(document, config.name, ExperimentConfig)


def experiment_from_dict(data: Mapping[str, Any], source: str = "config") -> ExperimentConfig:
    """The config of a stored mapping (`model_dump(mode="json")`), as kept in checkpoints.

    `source` names the mapping in messages. Raises ConfigError.
    """
    return validate(PresetDocument(dict(data)), source, ExperimentConfig)


def to_yaml(config: ExperimentConfig) -> str:
    """The complete config as YAML that `load_experiment` reads back as an equal one."""
    return dump_document(_kind_first(config.model_dump(mode="json")))


def preset_info(family: str = "", *, controls: bool = False) -> list[PresetInfo]:
    """One entry per runnable shipped preset (of `family`) by name, or per derived control.

    Raises ConfigError for a broken one.
    """
    library = Library()
    names = [name for name in library.names() if family in ("", library.family(name))]
    derived = (control for name in names for control in library.controls_of(name))
    configs = (_config(library, preset) for preset in (derived if controls else map(library.find, names)))
    return [
        PresetInfo(
            name=config.name,
            family=library.family(config.name),
            phase=config.phase,
            task=config.task.name or config.task.set or "",
            description=config.description,
            cost=config.cost,
        )
        for config in configs
    ]


def all_presets() -> Iterator[ExperimentConfig]:
    """Every runnable shipped preset, then every control."""
    library = Library()
    for preset in (*map(library.find, library.names()), *library.controls()):
        yield _config(library, preset)


def _config(library: Library, preset: Preset) -> ExperimentConfig:
    return validate(*library.resolve(preset), ExperimentConfig)


def mppi_config(settings: Sequence[str]) -> MPPIConfig:
    """The default planner with `settings` (each `key=value`, a later one wins) applied. Raises ConfigError."""
    return validate(parse_settings(settings, MPPIConfig, "--planner-set", "horizon=5"), "--planner-set", MPPIConfig)


def _flags(
    task: str | None = None, seed: int | None = None, device: str | None = None, track: Sequence[str] | None = None
) -> PresetDocument:
    sections = {
        # --task asks for one task, whatever set the preset names
        "task": None if task is None else {"set": None, "tasks": None, "only": None, "name": task},
        "seed": seed,
        "device": device,
        "tracking": None if track is None else {"sinks": list(track)},
    }
    paths: tuple[KeyPath, ...] = (("task", "name"), ("seed",), ("device",), ("tracking", "sinks"))
    said = (f"--task {task}", f"--seed {seed}", f"--device {device}", f"--track {track}")
    given = {key: value for key, value in sections.items() if value is not None}
    return PresetDocument(given, {path: text for path, text in zip(paths, said, strict=True) if path[0] in given})


def _kind_first(data: Mapping[str, Any]) -> dict[str, Any]:
    ordered = {"kind": data["kind"], **data} if "kind" in data else dict(data)
    return {key: _kind_first(value) if isinstance(value, Mapping) else value for key, value in ordered.items()}
