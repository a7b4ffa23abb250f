"""The presets by name: files, families with their arms, and derived controls, each merged to one document.

The shipped presets lie in the top-level `presets/` of a checkout; inside the wheel, in `flowmbpo/presets/files/`.
A file there is a preset, or a family of presets where it has one of these keys, which no file of a user's has:

    groups, arms    every name of the family has one of each
    modifiers       each with the list of the arms that have it; a name has at most one
    sizes           a name has at most one

The names are FAMILY[-GROUP][-ARM][-MODIFIER][-SIZE], and the configuration is the family's with the *overlay* of each
part laid over it. An entry's overlay is what presets/PART/NAME.yaml (arms/flowwm.yaml) holds, with what the family
states for the entry laid over that; a text in place of a mapping is its description. An entry that `extends` a preset
is laid over that one, and no shared file. Descriptions are joined: the family's (or the size's), the group's, and the
arm's or in its place the modifier's, in which `{base}` is the name without the modifier.

Names that start with '_' are shared bases: they can be extended, not run, and are not listed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import flowmbpo
from flowmbpo.config.dynamics import FlowDynamicsConfig
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.errors import ConfigError, nearest
from flowmbpo.presets.controls import CONTROLS, control_overlay
from flowmbpo.presets.schema import merge, merge_documents, validate
from flowmbpo.presets.yaml import PresetDocument, parse_document

EXTENDS = "extends"
SUFFIXES = (".yaml", ".yml")
PARTS = ("groups", "arms", "modifiers", "sizes")  # in the order of a name
OPTIONAL = ("modifiers", "sizes")


@dataclass(frozen=True)
class Preset:
    """A file, the parts of its family that the name asks for, and the control that is derived from both."""

    name: str
    path: Path
    parts: tuple[tuple[str, str], ...] = ()
    control: str = ""

    @property
    def is_file(self) -> bool:
        """Whether a file states it all."""
        return not self.parts and not self.control

    @property
    def flow(self) -> Preset:
        """The flow preset that a control is derived from."""
        return replace(self, name=self.name.removesuffix(f"-{self.control}"), control="")


class Library:
    """The shipped presets, and files of a user's own; each file is read once."""

    def __init__(self) -> None:
        self.folder = presets_folder()
        self._files: dict[Path, PresetDocument] = {}
        self._families: dict[Path, dict[str, Preset]] = {}
        self._documents: dict[Preset, PresetDocument] = {}
        self._flows: dict[Preset, FlowDynamicsConfig | None] = {}

    def names(self) -> list[str]:
        """Names of the runnable shipped presets, sorted; no controls."""
        return sorted(name for path in self._shipped_files() for name in self._members(path) if name[0] != "_")

    def controls(self) -> Iterator[Preset]:
        """Every derived control, flow preset by flow preset in the order of their names; none that a file replaces."""
        for name in self.names():
            yield from self.controls_of(name)

    def controls_of(self, name: str) -> list[Preset]:
        """The derived controls of the shipped preset `name`; none where it is no flow preset."""
        preset = self._shipped(name)
        if preset is None or self._flow_dynamics(preset) is None:
            return []
        controls = [replace(preset, name=f"{name}-{control}", control=control) for control in CONTROLS]
        return [control for control in controls if self._shipped(control.name) is None]

    def family(self, name: str) -> str:
        """The shortest file name that `name` begins with."""
        stems = [path.stem for path in self._shipped_files()]
        return min((stem for stem in stems if f"{name}-".startswith(f"{stem}-")), key=len, default=name)

    def find(self, preset: str | Path) -> Preset:
        """What stands behind a preset's name or a path of the user's own. Raises ConfigError.

        A shipped file wins over a derived preset of the same name.
        """
        path, name = Path(preset).expanduser(), str(preset)
        named = None if is_file_path(preset) else self._shipped(name)
        if named is None and path.is_file():
            return Preset(path.stem, path)
        if is_file_path(preset):
            what = "is a folder, not a preset file" if path.is_dir() else "does not exist"
            raise ConfigError(f"the preset file '{preset}' {what}. Give a .yaml file or a name from `presets list`.")
        named = named or self.control(name)
        if named is None and name in (path.stem for path in self._shipped_files()):
            raise ConfigError(f"unknown preset '{name}'. It is a family: see `flowmbpo presets list --family {name}`.")
        if named is None:
            raise unknown_preset(name, [*self.names(), *(control.name for control in self.controls())])
        return named

    def control(self, name: str) -> Preset | None:
        """The control that `name` would stand for, whether or not a file has that name."""
        for control in CONTROLS:
            base = name.removesuffix(f"-{control}")
            preset = self._shipped(base) if base != name and base[:1] != "_" else None
            if preset is not None:
                return replace(preset, name=name, control=control)
        return None

    def resolve(self, preset: Preset) -> tuple[PresetDocument, str]:
        """The merged document of a preset and its name in messages; `name` is never inherited."""
        merged = self._document(preset, (), None)
        own, shown = self._read(preset.path), self.shown(preset.path)
        if "name" not in own.data and preset.name.startswith("_"):
            raise ConfigError(f"{shown}: is a base for other presets, not a preset. Extend it, or give it a 'name'.")
        if not preset.is_file:
            return PresetDocument({**merged.data, "name": preset.name}, merged.origins), f"preset '{preset.name}'"
        shipped = preset.path.resolve().parent == self.folder.resolve()
        if shipped and preset.name not in self._members(preset.path):
            raise ConfigError(f"{shown}: is a family of presets. Name one: {', '.join(self._members(preset.path))}.")
        name, origin = own.data.get("name", preset.name), own.origins.get(("name",), shown)
        return PresetDocument({**merged.data, "name": name}, {**merged.origins, ("name",): origin}), shown

    def own(self, preset: Preset) -> dict[str, Any]:
        """What a file would state that stands for a preset without one. Raises ConfigError."""
        if preset.control:
            return {EXTENDS: preset.flow.name, **self._control_overlay(preset)}
        stated: dict[str, Any] = {}
        for layer in self._layers(preset):
            stated = merge(stated, layer.data, None)
        return stated

    def shown(self, path: Path) -> str:
        """The path as a person would write it: shipped presets by folder and name, others from here."""
        resolved, folder = path.resolve(), self.folder.resolve()
        if resolved.is_relative_to(folder):
            return f"presets/{resolved.relative_to(folder).as_posix()}"
        relative = os.path.relpath(resolved)
        return str(path) if relative.startswith("..") else relative

    def _shipped_files(self) -> list[Path]:
        return sorted(self.folder.glob("*.yaml"))

    def _members(self, path: Path) -> dict[str, Preset]:
        """Every name of the shipped file `path`: its own, or its family's."""
        if path in self._families:
            return self._families[path]
        data = self._read(path).data
        keys = [key for key in PARTS if key in data]
        members = {}
        for chosen in product(*(["", *data[key]] if key in OPTIONAL else data[key] for key in keys)):
            parts = {key: name for key, name in zip(keys, chosen, strict=True) if name}
            if "modifiers" not in parts or parts["arms"] in data["modifiers"][parts["modifiers"]]:
                name = "-".join([path.stem, *parts.values()])
                members[name] = Preset(name, path, tuple(parts.items()))
        self._families[path] = members
        return members

    def _shipped(self, name: str) -> Preset | None:
        """The shipped preset (or base) of that name; no control."""
        if not name or is_file_path(name):
            return None
        beginning = (path for path in self._shipped_files() if f"{name}-".startswith(f"{path.stem}-"))
        return next(filter(None, (self._members(path).get(name) for path in beginning)), None)

    def _document(self, preset: Preset, below: tuple[Preset, ...], asked: str | None) -> PresetDocument:
        """The document of `preset`, laid over the documents it extends; not to be changed."""
        key = replace(preset, path=preset.path.resolve())
        if key in below:
            steps = (self.shown(step.path) if step.is_file else step.name for step in (*below, key))
            raise ConfigError(f"{asked}: 'extends' goes in a circle: {' -> '.join(steps)}. Remove one of these lines.")
        if key not in self._documents:
            self._documents[key] = self._merged(preset, (*below, key), asked)
        return self._documents[key]

    def _merged(self, preset: Preset, below: tuple[Preset, ...], asked: str | None) -> PresetDocument:
        if preset.control:
            merged = self._document(preset.flow, below, asked)
            return merge_documents(merged, PresetDocument(self._control_overlay(preset)), ExperimentConfig)
        merged, layers = PresetDocument(), self._layers(preset)
        for layer in reversed(layers):
            if EXTENDS in layer.data:
                origin = layer.origins[(EXTENDS,)]
                merged = self._document(self._parent(layer.data[EXTENDS], preset.path, origin), below, origin)
                break
        for layer in layers:
            stated = {key: value for key, value in layer.data.items() if key != EXTENDS}
            merged = merge_documents(merged, PresetDocument(stated, layer.origins), ExperimentConfig)
        return merged

    def _layers(self, preset: Preset) -> list[PresetDocument]:
        """What the file states for all of its names, the overlays of the parts, and the description of it all."""
        document = self._read(preset.path)
        if preset.path.resolve().parent != self.folder.resolve():  # of a user's own
            return [document]
        stated = {key: value for key, value in document.data.items() if key not in PARTS}
        layers, says = [PresetDocument(stated, document.origins)], {"family": stated.get("description")}
        for key, name in preset.parts:
            for overlay in self._overlays(document, key, name):
                layers.append(overlay)
                says[key] = overlay.data.get("description", says.get(key))
        if preset.parts:
            texts = (says.get("sizes") or says["family"], says.get("groups"), says.get("modifiers") or says.get("arms"))
            base = "-".join([preset.path.stem, *(name for key, name in preset.parts if key != "modifiers")])
            layers.append(PresetDocument({"description": " ".join(filter(None, texts)).replace("{base}", base)}))
        return layers

    def _overlays(self, family: PresetDocument, key: str, name: str) -> Iterator[PresetDocument]:
        """Of one part of a name: the shared file's, and what the family states over it."""
        entries = family.data[key]
        entry = entries[name] if isinstance(entries, dict) and key != "modifiers" else None
        stated = {"description": entry} if isinstance(entry, str) else entry or {}
        path = self.folder / key / f"{name}.yaml"
        if EXTENDS not in stated and path.is_file():
            yield self._read(path)
        origins = {place[2:]: origin for place, origin in family.origins.items() if place[:2] == (key, name)}
        yield PresetDocument(stated, origins)

    def _parent(self, value: Any, path: Path, origin: str) -> Preset:
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{origin}: extends: {value!r} is not allowed. Use one preset's name or file path.")
        if is_file_path(value):
            parent = path.parent / Path(value).expanduser()
            if not parent.is_file():
                raise ConfigError(f"{origin}: extends: the file '{value}' does not exist (looked for {parent}).")
            return Preset(parent.stem, parent.resolve())
        named = self._shipped(value) or self.control(value)
        if named is None:
            beside = [f"{value}{suffix}" for suffix in SUFFIXES if (path.parent / f"{value}{suffix}").is_file()]
            hint = f" A file beside this one is extended as '{beside[0]}'." if beside else ""
            raise ConfigError(f"{origin}: extends: {unknown_preset(value, self.names())}{hint}")
        return named

    def _control_overlay(self, preset: Preset) -> dict[str, Any]:
        flow = self._flow_dynamics(preset.flow)
        if flow is None:
            raise ConfigError(
                f"unknown preset '{preset.name}'. Controls stand beside flow world models, and "
                f"'{preset.flow.name}' has none. See `flowmbpo presets list --controls`."
            )
        return control_overlay(preset.control, preset.flow.name, flow)

    def _flow_dynamics(self, preset: Preset) -> FlowDynamicsConfig | None:
        """The typed dynamics of a preset, or None where they are no flow."""
        if preset not in self._flows:
            dynamics = validate(*self.resolve(preset), ExperimentConfig).model.dynamics
            self._flows[preset] = dynamics if isinstance(dynamics, FlowDynamicsConfig) else None
        return self._flows[preset]

    def _read(self, path: Path) -> PresetDocument:
        if path not in self._files:
            shown = self.shown(path)
            try:
                self._files[path] = parse_document(path.read_text(encoding="utf-8"), shown)
            except UnicodeDecodeError as error:
                raise ConfigError(f"{shown}: not a text file (byte {error.start} is not UTF-8).") from error
            except OSError as error:
                raise ConfigError(f"{shown}: cannot be read: {error.strerror}.") from error
        return self._files[path]


def presets_folder() -> Path:
    """The folder that holds the shipped presets. Raises ConfigError for a broken installation."""
    package = Path(flowmbpo.__file__).resolve().parent
    for folder in (package / "presets" / "files", package.parent / "presets"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"the presets are missing from this installation (looked in {package}). Install it again.")


def is_file_path(preset: str | Path) -> bool:
    """Whether `preset` is written as a file path rather than as a name."""
    text = str(preset)
    return isinstance(preset, Path) or text.endswith(SUFFIXES) or "/" in text or "\\" in text


def unknown_preset(name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that no preset has; it offers the nearest of `known`."""
    hint = nearest(name, known)
    return ConfigError(f"unknown preset '{name}'.{hint} See `flowmbpo presets list`, or give a path to a .yaml file.")
