"""Where a config comes from: a preset's name, a YAML file, a run directory, or a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowmbpo.errors import RunDirectoryError

if TYPE_CHECKING:
    from flowmbpo.config.experiment import ExperimentConfig


def complete_preset(incomplete: str) -> list[str]:
    """Shell completion: the names of the shipped presets, and the controls of one that is typed in full."""
    from flowmbpo.presets.library import Library

    library = Library()
    names = library.names()
    typed = [name for name in names if incomplete.startswith(name)]  # only their controls are within reach
    controls = [control.name for name in typed for control in library.controls_of(name)]
    return [name for name in (*names, *controls) if name.startswith(incomplete)]


def complete_task(incomplete: str) -> list[str]:
    """Shell completion: the names of the tasks."""
    from flowmbpo.envs.tasks import task_names

    return [name for name in task_names() if name.startswith(incomplete)]


def is_stored(source: str | Path) -> bool:
    """Whether `source` means a run directory or a checkpoint file rather than a preset."""
    path = Path(source)
    return path.suffix == ".pt" or (path / "config.yaml").is_file()


def stored_config(path: Path) -> ExperimentConfig:
    """The config of a run directory, or the one inside a checkpoint file.

    Raises RunDirectoryError, CheckpointError or ConfigError.
    """
    from flowmbpo.presets.load import experiment_from_dict, load_experiment

    if path.is_dir():
        if not (path / "config.yaml").is_file():
            raise RunDirectoryError(f"{path}: holds no run (no config.yaml). Name a run directory or a .pt file.")
        return load_experiment(path / "config.yaml")
    from flowmbpo.checkpoints.load import load

    loaded = load(path)
    return experiment_from_dict(loaded.payload["config"], f"{loaded.path} (config)")


def config_of(source: str) -> ExperimentConfig:
    """The config behind a preset's name, a YAML file, a run directory or a checkpoint file."""
    if is_stored(source):
        return stored_config(Path(source))
    from flowmbpo.presets.load import load_experiment

    return load_experiment(source)


def existing_run(preset: str | None, overrides: Sequence[str], *, task: str | None, seed: int | None) -> Path | None:
    """The run that a bare `--resume` means: this preset, task and seed's, if there is one.

    It is looked for under the overrides' own name first, then under the preset's: overrides may
    belong to the run, or be what its continuation changes (`--resume --set training.epochs=N`). Of
    an alias, a run of any backend will do, the one that `auto` takes here before others; stderr
    says which it is where there was a choice.
    """
    from flowmbpo.presets.load import load_experiment
    from flowmbpo.stages.config import DEFAULT_PRESET

    asked = load_experiment(preset or DEFAULT_PRESET, overrides, task=task, seed=seed)
    for config in (asked, load_experiment(preset or DEFAULT_PRESET, task=task, seed=seed)):
        # A backend that is asked for is the only one, under the preset's own name too.
        backend = asked.task.backend if config.task.name == asked.task.name else config.task.backend
        places = list(_run_places(config, backend))
        existing = [path for path in places if (path / "run.json").is_file()]
        if existing:
            others = ", ".join(str(path) for path in existing[1:])
            if others:
                print(f"--resume: goes on with {existing[0]}; there is also {others}", file=sys.stderr)
            elif existing[0] != places[0]:
                print(f"--resume: goes on with {existing[0]}; there is no {places[0]}", file=sys.stderr)
            return existing[0]
    return None


def _run_places(config: ExperimentConfig, backend: str) -> Iterator[Path]:
    """Where runs of this config would lie: of an alias with `auto`, with every backend, its choice first."""
    from flowmbpo.envs.resolve import resolve
    from flowmbpo.envs.tasks import ALIASES
    from flowmbpo.runs.directory import default_path

    task = config.task.model_copy(update={"backend": backend})
    backends = [resolve(task).config.backend]
    if backend == "auto" and task.name is not None and task.name in ALIASES:
        backends += [other for other in ALIASES[task.name] if other != backends[0]]
    for choice in backends:
        yield default_path(Path(), config, resolve(task.model_copy(update={"backend": choice})).label)
