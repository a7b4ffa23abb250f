"""From a preset's name or file to a typed, complete config, and back to YAML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.planner import MPPIConfig
from flowmbpo.presets.library import Library, Preset
from flowmbpo.presets.overrides import config_name, parse_settings
from flowmbpo.presets.schema import merge_documents, validate
from flowmbpo.presets.yaml import PresetDocument, SourceLine, dump_document


@dataclass(frozen=True)
class PresetInfo:
    """What `presets list` says about a preset."""

    name: str
    family: str
    phase: str
    task: str
    description: str
    cost: str


def load_experiment(
    preset: str | Path,
    overrides: Sequence[str] = (),
    *,
    task: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    track: Sequence[str] | None = None,
) -> ExperimentConfig:
    """The resolved config of `preset` (a shipped name or a file) with `overrides` ('key=value').

    `task`, `seed`, `device` and `track` (the sinks; an empty sequence turns them off) are the command
    line's own flags: they win over the preset and the overrides. A file without a `name` is named
    after itself. Where an override changes the experiment, the name gets `+` and six hex digits (see
    `config_name`). Raises ConfigError.
    """
    library = Library()
    document, source = library.resolve(library.find(preset))
    flags = _flags(task, seed, device, track)
    with_flags = merge_documents(document, flags, ExperimentConfig)
    if not overrides:
        return validate(with_flags, source, ExperimentConfig)
    changed = merge_documents(document, parse_settings(overrides), ExperimentConfig)
    config = validate(merge_documents(changed, flags, ExperimentConfig), source, ExperimentConfig)
    return config.model_copy(update={"name": config_name(validate(with_flags, source, ExperimentConfig), config)})


def override(
    config: ExperimentConfig,
    overrides: Sequence[str] = (),
    *,
    task: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    track: Sequence[str] | None = None,
) -> ExperimentConfig:
    """A resolved config with overrides and flags applied; its name stays. Raises ConfigError.

    For a run that goes on in its own directory; a new run gets its name from `load_experiment`.
    """
    document = PresetDocument(config.model_dump(mode="json"))
    for delta in (parse_settings(overrides), _flags(task, seed, device, track)):
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
    return [
        PresetInfo(
            name=config.name,
            family=library.family(config.name),
            phase=config.phase,
            task=config.task.name or config.task.set or "",
            description=config.description,
            cost=config.cost,
        )
        for config in _configs(library, derived if controls else map(library.find, names))
    ]


def all_presets() -> Iterator[ExperimentConfig]:
    """Every runnable shipped preset, then every control."""
    library = Library()
    yield from _configs(library, (*map(library.find, library.names()), *library.controls()))


def _configs(library: Library, presets: Iterable[Preset]) -> Iterator[ExperimentConfig]:
    return (validate(*library.resolve(preset), ExperimentConfig) for preset in presets)


def mppi_config(settings: Sequence[str]) -> MPPIConfig:
    """The default planner with `settings` (each `key=value`, a later one wins) applied. Raises ConfigError."""
    return validate(parse_settings(settings, MPPIConfig, "--planner-set", "horizon=5"), "--planner-set", MPPIConfig)


def _flags(task: str | None, seed: int | None, device: str | None, track: Sequence[str] | None) -> PresetDocument:
    document = PresetDocument()
    given = {
        ("task", "name"): (task, "--task"),
        ("seed",): (seed, "--seed"),
        ("device",): (device, "--device"),
        ("tracking", "sinks"): (None if track is None else list(track), "--track"),
    }
    if task is not None:  # --task asks for one task, whatever set the preset names
        document.data["task"] = {"set": None, "tasks": None, "only": None}
    for path, (value, flag) in given.items():
        if value is not None:
            section = document.data.setdefault(path[0], {}) if len(path) == 2 else document.data
            section[path[-1]] = value
            document.origins[path] = SourceLine(f"{flag} {value}")
    return document


def _kind_first(data: Mapping[str, Any]) -> dict[str, Any]:
    ordered = {"kind": data["kind"], **data} if "kind" in data else dict(data)
    return {key: _kind_first(value) if isinstance(value, Mapping) else value for key, value in ordered.items()}
