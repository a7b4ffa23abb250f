"""The presets that ship with the package: where they lie and what each is for. Imports no torch.

In a checkout they are the top-level `presets/`; inside the wheel, `flowmbpo/presets/`. Files whose
name starts with '_' are shared bases: they can be extended, not run, and are not listed.
"""

from __future__ import annotations

from pathlib import Path

import flowmbpo
from flowmbpo.errors import ConfigError, nearest

SUFFIXES = (".yaml", ".yml")


def presets_folder() -> Path:
    """The folder that holds the shipped presets. Raises ConfigError for a broken installation."""
    package = Path(flowmbpo.__file__).resolve().parent
    for folder in (package / "presets", package.parent / "presets"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"the presets are missing from this installation (looked beside {package}). Install it again.")


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
    hint = nearest(name, preset_names())
    raise ConfigError(f"unknown preset '{name}'.{hint} See `flowmbpo presets list`, or give a path to a .yaml file.")


def find_preset(preset: str | Path) -> Path:
    """The file behind a preset's name or a path of the user's own. Raises ConfigError."""
    if is_file_path(preset):
        path = Path(preset).expanduser()
        if not path.is_file():
            what = "is a folder, not a preset file" if path.is_dir() else "does not exist"
            raise ConfigError(f"the preset file '{preset}' {what}. Give a .yaml file or a name from `presets list`.")
        return path
    if not (presets_folder() / f"{preset}.yaml").is_file() and Path(preset).is_file():
        return Path(preset)
    return preset_path(str(preset))
