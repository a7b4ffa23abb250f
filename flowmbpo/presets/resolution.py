"""From a preset's name to one merged document: files, what they extend, and derived controls. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmbpo.config.dynamics import FlowDynamicsConfig
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.errors import ConfigError
from flowmbpo.presets.controls import CONTROLS
from flowmbpo.presets.merge import merge_documents
from flowmbpo.presets.names import SUFFIXES, is_file_path, preset_names, preset_path, presets_folder, unknown_preset
from flowmbpo.presets.validation import validate
from flowmbpo.presets.yaml import Document, Origin, parse_document

EXTENDS = "extends"
Cache = dict[Path, Document]


@dataclass(frozen=True)
class Derived:
    """A preset without a file: the control `control` of the shipped flow preset `base`."""

    base: str
    control: str

    @property
    def name(self) -> str:
        """`base`-`control`."""
        return f"{self.base}-{self.control}"


def find_preset(preset: str | Path) -> Path | Derived:
    """What stands behind a preset's name or a path of the user's own. Raises ConfigError.

    A shipped file wins over a derived control of the same name.
    """
    if is_file_path(preset):
        path = Path(preset).expanduser()
        if not path.is_file():
            what = "is a folder, not a preset file" if path.is_dir() else "does not exist"
            raise ConfigError(f"the preset file '{preset}' {what}. Give a .yaml file or a name from `presets list`.")
        return path
    if not _is_shipped(str(preset)) and Path(preset).is_file():
        return Path(preset)
    found = _named(str(preset))
    if found is None:
        raise unknown_preset(str(preset), [*preset_names(), *(derived.name for derived in control_names())])
    return found


def derived_from(name: str) -> Derived | None:
    """The control that `name` would stand for, whether or not a file has that name."""
    for control in CONTROLS:
        base = name.removesuffix(f"-{control}")
        if base != name and not base.startswith("_") and _is_shipped(base):
            return Derived(base, control)
    return None


def control_names(cache: Cache | None = None) -> Iterator[Derived]:
    """Every derived control, flow preset by flow preset in the order of their names; none that a file replaces."""
    cache = {} if cache is None else cache
    for name in preset_names():
        yield from controls_of(name, cache)


def controls_of(name: str, cache: Cache | None = None) -> list[Derived]:
    """The derived controls of the shipped preset `name`; none where it is no flow preset."""
    document, source = resolve(preset_path(name), {} if cache is None else cache)
    if _flow_dynamics(document, source) is None:
        return []
    return [Derived(name, control) for control in CONTROLS if not _is_shipped(f"{name}-{control}")]


def control_delta(derived: Derived) -> dict[str, Any]:
    """What a file that extends `derived.base` would state. Raises ConfigError where the base is no flow preset."""
    return _delta(derived, _chain(preset_path(derived.base), (), None, {}))


def resolve(preset: Path | Derived, cache: Cache) -> tuple[Document, str]:
    """The merged document of a preset and its name in messages; `name` is never inherited."""
    document = _chain(preset, (), None, cache)
    if isinstance(preset, Derived):
        document.data["name"] = preset.name
        return document, f"preset '{preset.name}'"
    own = _read(preset, cache)
    shown = _shown(preset)
    if "name" not in own.data:
        if preset.stem.startswith("_"):
            raise ConfigError(f"{shown}: is a base for other presets, not a preset. Extend it, or give it a 'name'.")
        document.origins[("name",)] = Origin(shown)
    document.data["name"] = own.data.get("name", preset.stem)
    return document, shown


def _is_shipped(name: str) -> bool:
    return bool(name) and not is_file_path(name) and (presets_folder() / f"{name}.yaml").is_file()


def _named(name: str) -> Path | Derived | None:
    """The shipped preset (or base) of that name, else the control that the name stands for."""
    return preset_path(name) if _is_shipped(name) else derived_from(name)


def _delta(derived: Derived, base: Document) -> dict[str, Any]:
    named = Document({**base.data, "name": derived.base}, base.origins)
    flow = _flow_dynamics(named, f"preset '{derived.base}'")
    if flow is None:
        raise ConfigError(
            f"unknown preset '{derived.name}'. Controls stand beside flow world models, and "
            f"'{derived.base}' has none. See `flowmbpo presets list --controls`."
        )
    return CONTROLS[derived.control].delta(derived.base, flow)


def _flow_dynamics(document: Document, source: str) -> FlowDynamicsConfig | None:
    """The typed dynamics of a merged document, or None where they are no flow."""
    dynamics = validate(document, source, ExperimentConfig).model.dynamics
    return dynamics if isinstance(dynamics, FlowDynamicsConfig) else None


def _chain(preset: Path | Derived, below: tuple[Path, ...], asked: Origin | None, cache: Cache) -> Document:
    """The document of `preset` laid over the documents it extends."""
    if isinstance(preset, Derived):
        base = _chain(preset_path(preset.base), below, asked, cache)
        return merge_documents(base, Document(_delta(preset, base)), ExperimentConfig)
    path = preset
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


def _parent(value: Any, path: Path, origin: Origin) -> Path | Derived:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{origin}: extends: {value!r} is not allowed. Use one preset's name or file path.")
    if is_file_path(value):
        parent = path.parent / Path(value).expanduser()
        if not parent.is_file():
            raise ConfigError(f"{origin}: extends: the file '{value}' does not exist (looked for {parent}).")
        return parent
    found = _named(value)
    if found is None:
        beside = [f"{value}{suffix}" for suffix in SUFFIXES if (path.parent / f"{value}{suffix}").is_file()]
        hint = f" A file beside this one is extended as '{beside[0]}'." if beside else ""
        raise ConfigError(f"{origin}: extends: {unknown_preset(value, preset_names())}{hint}")
    return found


def _read(path: Path, cache: Cache) -> Document:
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
