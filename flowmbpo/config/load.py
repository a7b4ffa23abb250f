"""From a preset's name or file to a typed, complete config, and back to YAML. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.merge import merge_documents
from flowmbpo.config.overrides import config_name, parse_overrides
from flowmbpo.config.presets import SUFFIXES, find_preset, is_file_path, preset_names, preset_path, presets_folder
from flowmbpo.config.validation import validate
from flowmbpo.config.yaml import Document, Origin, dump_document, parse_document
from flowmbpo.errors import ConfigError

EXTENDS = "extends"
Sinks = Sequence[str]


@dataclass(frozen=True)
class PresetInfo:
    """What `presets list` says about a preset."""

    name: str
    phase: str
    task: str
    description: str
    cost: str

    def to_dict(self) -> dict[str, str]:
        """The JSON object."""
        return asdict(self)


def load_experiment(
    preset: str | Path,
    overrides: Sequence[str] = (),
    *,
    task: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    track: Sinks | None = None,
) -> ExperimentConfig:
    """The resolved config of `preset` (a shipped name or a file) with `overrides` ('key=value').

    `task`, `seed`, `device` and `track` (the sinks; an empty sequence turns them off) are the command
    line's own flags: they win over the preset and the overrides. A file without a `name` is named
    after itself. Where an override changes the experiment, the name gets `+` and six hex digits (see
    `config_name`). Raises ConfigError.
    """
    document, source = _resolve(find_preset(preset), {})
    flags = _flags(task, seed, device, track)
    with_flags = merge_documents(document, flags, ExperimentConfig)
    if not overrides:
        return validate(with_flags, source)
    changed = merge_documents(document, parse_overrides(overrides), ExperimentConfig)
    config = validate(merge_documents(changed, flags, ExperimentConfig), source)
    return config.model_copy(update={"name": config_name(validate(with_flags, source), config)})


def override(
    config: ExperimentConfig,
    overrides: Sequence[str] = (),
    *,
    task: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    track: Sinks | None = None,
) -> ExperimentConfig:
    """A resolved config with overrides and flags applied; its name stays. Raises ConfigError.

    For a run that goes on in its own directory; a new run gets its name from `load_experiment`.
    """
    document = Document(config.model_dump(mode="json"))
    for delta in (parse_overrides(overrides), _flags(task, seed, device, track)):
        document = merge_documents(document, delta, ExperimentConfig)
    return validate(document, config.name)


def experiment_from_dict(data: Mapping[str, Any], source: str = "config") -> ExperimentConfig:
    """The config of a stored mapping (`model_dump(mode="json")`), as kept in checkpoints.

    `source` names the mapping in messages. Raises ConfigError.
    """
    return validate(Document(dict(data)), source)


def to_yaml(config: ExperimentConfig) -> str:
    """The complete config as YAML that `load_experiment` reads back as an equal one."""
    return dump_document(_kind_first(config.model_dump(mode="json")))


def preset_info() -> list[PresetInfo]:
    """One entry per runnable shipped preset, sorted by name. Raises ConfigError for a broken one."""
    cache: dict[Path, Document] = {}
    infos = []
    for name in preset_names():
        document, source = _resolve(preset_path(name), cache)
        config = validate(document, source)
        infos.append(
            PresetInfo(
                config.name, config.phase, config.task.name or config.task.set or "", config.description, config.cost
            )
        )
    return infos


def _flags(task: str | None, seed: int | None, device: str | None, track: Sinks | None) -> Document:
    document = Document()
    given = {
        ("task", "name"): (task, "--task"),
        ("seed",): (seed, "--seed"),
        ("device",): (device, "--device"),
        ("tracking", "sinks"): (None if track is None else list(track), "--track"),
    }
    if task is not None:  # --task asks for one task, whatever set the preset names
        document.data["task"] = {"set": None, "tasks": None}
    for path, (value, flag) in given.items():
        if value is not None:
            section = document.data.setdefault(path[0], {}) if len(path) == 2 else document.data
            section[path[-1]] = value
            document.origins[path] = Origin(f"{flag} {value}")
    return document


def _resolve(path: Path, cache: dict[Path, Document]) -> tuple[Document, str]:
    """The merged document of a preset file and its name in messages; `name` is never inherited."""
    document = _chain(path, (), None, cache)
    own = _read(path, cache)
    if "name" not in own.data and path.stem.startswith("_"):
        raise ConfigError(f"{_shown(path)}: is a base for other presets, not a preset. Extend it, or give it a 'name'.")
    name = own.data.get("name", path.stem)
    document.data["name"] = name
    if "name" not in own.data:
        document.origins[("name",)] = Origin(_shown(path))
    return document, _shown(path)


def _chain(path: Path, below: tuple[Path, ...], asked: Origin | None, cache: dict[Path, Document]) -> Document:
    """The document of `path` laid over the documents it extends."""
    if path.resolve() in below:
        loop = " -> ".join(_shown(step) for step in (*below, path.resolve()))
        raise ConfigError(f"{asked}: 'extends' goes in a circle: {loop}. Remove one of these lines.")
    document = _read(path, cache)
    if EXTENDS not in document.data:
        return Document(dict(document.data), dict(document.origins))
    origin = document.origins[(EXTENDS,)]
    parent = _parent(document.data[EXTENDS], path, origin)
    base = _chain(parent, (*below, path.resolve()), origin, cache)
    own = Document({key: value for key, value in document.data.items() if key != EXTENDS}, document.origins)
    return merge_documents(base, own, ExperimentConfig)


def _parent(value: Any, path: Path, origin: Origin) -> Path:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{origin}: extends: {value!r} is not allowed. Use one preset's name or file path.")
    if is_file_path(value):
        parent = path.parent / Path(value).expanduser()
        if not parent.is_file():
            raise ConfigError(f"{origin}: extends: the file '{value}' does not exist (looked for {parent}).")
        return parent
    try:
        return preset_path(value)
    except ConfigError as error:
        beside = [f"{value}{suffix}" for suffix in SUFFIXES if (path.parent / f"{value}{suffix}").is_file()]
        hint = f" A file beside this one is extended as '{beside[0]}'." if beside else ""
        raise ConfigError(f"{origin}: extends: {error}{hint}") from error


def _read(path: Path, cache: dict[Path, Document]) -> Document:
    key = path.resolve()
    if key not in cache:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{_shown(path)}: not a text file (byte {error.start} is not UTF-8).") from error
        except OSError as error:
            raise ConfigError(f"{_shown(path)}: cannot be read: {error.strerror}.") from error
        cache[key] = parse_document(text, _shown(path))
    return cache[key]


def _shown(path: Path) -> str:
    """The path as a person would write it: shipped presets by folder and name, others from here."""
    resolved = path.resolve()
    if resolved.parent == presets_folder().resolve():
        return f"presets/{path.name}"
    relative = os.path.relpath(resolved)
    return str(path) if relative.startswith("..") else relative


def _kind_first(data: Mapping[str, Any]) -> dict[str, Any]:
    ordered = {"kind": data["kind"], **data} if "kind" in data else dict(data)
    return {key: _kind_first(value) if isinstance(value, Mapping) else value for key, value in ordered.items()}
