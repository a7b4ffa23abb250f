"""Where a config comes from: a preset's name, a YAML file, a run directory, or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowmbpo.errors import RunDirectoryError

if TYPE_CHECKING:
    from flowmbpo.config.experiment import ExperimentConfig

DEFAULT_PRESET = "quickstart"


def complete_preset(incomplete: str) -> list[str]:
    """Shell completion: the names of the shipped presets."""
    from flowmbpo.config.presets import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


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
    from flowmbpo.config.load import experiment_from_dict, load_experiment

    if path.is_dir():
        if not (path / "config.yaml").is_file():
            raise RunDirectoryError(f"{path}: holds no run (no config.yaml). Name a run directory or a .pt file.")
        return load_experiment(path / "config.yaml")
    from flowmbpo.checkpoints.loader import load

    loaded = load(path)
    return experiment_from_dict(loaded.payload["config"], f"{loaded.path} (config)")


def config_of(source: str) -> ExperimentConfig:
    """The config behind a preset's name, a YAML file, a run directory or a checkpoint file."""
    if is_stored(source):
        return stored_config(Path(source))
    from flowmbpo.config.load import load_experiment

    return load_experiment(source)


def resolve_config(
    preset: str | None,
    overrides: Sequence[str],
    stored: Path | None,
    *,
    task: str | None,
    seed: int | None,
    device: str | None,
    track: Sequence[str] | None,
) -> ExperimentConfig:
    """The config to train with. Without a preset, that of the run to resume (`stored`), else quickstart.

    A run that is resumed keeps its name whatever is overridden: it stays in its directory. Raises
    ConfigError, also for an unknown task or a backend that does not run it.
    """
    from flowmbpo.config.load import load_experiment, override
    from flowmbpo.envs.resolve import pin_backend, task_spec

    if stored is None:
        name = preset or DEFAULT_PRESET
        config = load_experiment(name, overrides, task=task, seed=seed, device=device, track=track)
    else:
        run = stored_config(stored)
        base = run if preset is None else load_experiment(preset).model_copy(update={"name": run.name})
        config = override(base, overrides, task=task, seed=seed, device=device, track=track)
    task_spec(config.task)  # refuses what is not known, before torch is imported
    return config.model_copy(update={"task": pin_backend(config.task)})


def existing_run(preset: str | None, overrides: Sequence[str], *, task: str | None, seed: int | None) -> Path | None:
    """The run that a bare `--resume` means: this preset, task and seed's, if there is one.

    It is looked for under the overrides' own name first, then under the preset's: overrides may
    belong to the run, or be what its continuation changes (`--resume --set training.epochs=N`).
    """
    from flowmbpo.config.load import load_experiment
    from flowmbpo.envs.resolve import task_spec
    from flowmbpo.run_directory import default_path

    for given in (overrides, ()):
        config = load_experiment(preset or DEFAULT_PRESET, given, task=task, seed=seed)
        path = default_path(Path(), config, task_spec(config.task).label)
        if (path / "run.json").is_file():
            return path
    return None
