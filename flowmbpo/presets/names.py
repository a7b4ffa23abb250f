"""The presets that ship with the package: where they lie and what each is for. Imports no torch.

In a checkout they are the top-level `presets/`; inside the wheel, `flowmbpo/presets/files/`. Files whose
name starts with '_' are shared bases: they can be extended, not run, and are not listed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import flowmbpo
from flowmbpo.errors import ConfigError, nearest

SUFFIXES = (".yaml", ".yml")


def presets_folder() -> Path:
    """The folder that holds the shipped presets. Raises ConfigError for a broken installation."""
    package = Path(flowmbpo.__file__).resolve().parent
    for folder in (package / "presets" / "files", package.parent / "presets"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"the presets are missing from this installation (looked in {package}). Install it again.")


def preset_names() -> list[str]:
    """Names of the runnable shipped presets, sorted."""
    return sorted(path.stem for path in presets_folder().glob("*.yaml") if not path.stem.startswith("_"))


def is_file_path(preset: str | Path) -> bool:
    """Whether `preset` is written as a file path rather than as a name."""
    text = str(preset)
    return isinstance(preset, Path) or text.endswith(SUFFIXES) or "/" in text or "\\" in text


def preset_path(name: str) -> Path:
    """The file of the shipped preset (or shared base) `name`. Raises ConfigError with the nearest name."""
    path = presets_folder() / f"{name}.yaml"
    if name and not is_file_path(name) and path.is_file():
        return path
    raise unknown_preset(name, preset_names())


def unknown_preset(name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that no preset has; it offers the nearest of `known`."""
    hint = nearest(name, known)
    return ConfigError(f"unknown preset '{name}'.{hint} See `flowmbpo presets list`, or give a path to a .yaml file.")
