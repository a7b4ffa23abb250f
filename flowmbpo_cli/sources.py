"""Where a config comes from: a preset's name, a YAML file, a run directory, a checkpoint, or an environment's name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flowmbpo.errors import ConfigError, RunDirectoryError, nearest

if TYPE_CHECKING:
    from flowmbpo.config.experiment import ExperimentConfig
    from flowmbpo.config.task import TaskConfig


def _completed(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def complete_preset(incomplete: str) -> list[str]:
    """Shell completion: the names of the shipped presets, and the controls of one that is typed in full."""
    from flowmbpo.presets.library import Library

    library = Library()
    names = library.names()
    typed = [name for name in names if incomplete.startswith(name)]  # only their controls are within reach
    controls = [control.name for name in typed for control in library.controls_of(name)]
    return _completed((*names, *controls), incomplete)


def complete_task(incomplete: str) -> list[str]:
    """Shell completion: the names of the tasks."""
    from flowmbpo.envs.tasks import task_names

    return _completed(task_names(), incomplete)


def task_option(help_text: str, metavar: str | None = None) -> Any:
    """An option that takes a task."""
    return typer.Option(metavar=metavar, help=help_text, autocompletion=complete_task)


def environment_names() -> list[str]:
    """Every name that means an environment: tasks, aliases, task sets."""
    from flowmbpo.envs.task_sets import TASK_SETS
    from flowmbpo.envs.tasks import task_names

    return [*task_names(), *TASK_SETS]


def complete_environment(incomplete: str) -> list[str]:
    """Shell completion: the names of tasks, aliases and task sets."""
    return _completed(environment_names(), incomplete)


def find_environment(name: str) -> TaskConfig:
    """The config that `name` means: a task, an alias, a task set, or the `task` of a YAML file.

    Raises ConfigError, with the nearest name, where there is none.
    """
    from flowmbpo.config.task import TaskConfig
    from flowmbpo.envs.task_sets import TASK_SETS
    from flowmbpo.presets.library import is_file_path

    if name in TASK_SETS:
        return TaskConfig(name=None, set=name)
    if is_file_path(name):
        return config_of(name).task
    names = environment_names()
    if name not in names:
        raise ConfigError(
            f"no task, alias or task set is called '{name}'.{nearest(name, names)} "
            "`flowmbpo envs list` shows all; a file of your own ends in .yaml."
        )
    return TaskConfig(name=name)


def check_target(flag: str, path: Path | None, *suffixes: str, said: str = "") -> None:
    """Refuse a file that could not be written, before minutes are spent on it. `said` names the suffixes in words."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise typer.BadParameter(f"'{path}' must end in {said or suffixes[0]}.", param_hint=flag)
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"the folder '{path.parent}' does not exist. Create it first.", param_hint=flag)
    if path.is_dir():
        raise typer.BadParameter(f"'{path}' is a folder. Name a file.", param_hint=flag)


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
    path = Path(source)
    if path.suffix == ".pt" or (path / "config.yaml").is_file():
        return stored_config(path)
    from flowmbpo.presets.load import load_experiment

    return load_experiment(source)


def existing_run(preset: str | None, overrides: Sequence[str], *, task: str | None, seed: int | None) -> Path | None:
    """The run that a bare `--resume` means: this preset, task and seed's, if there is one.

    It is looked for under the overrides' own name first, then under the preset's: overrides may belong to the run, or
    be what its continuation changes (`--resume --set training.epochs=N`). Of an alias, a run of any backend will do,
    the one that `auto` takes here before others; stderr says which it is where there was a choice.
    """
    from flowmbpo.envs.resolve import resolve
    from flowmbpo.envs.tasks import ALIASES
    from flowmbpo.presets.load import load_experiment
    from flowmbpo.runs.directory import default_path
    from flowmbpo.stages.config import DEFAULT_PRESET

    asked = load_experiment(preset or DEFAULT_PRESET, overrides, task=task, seed=seed)
    for config in (asked, load_experiment(preset or DEFAULT_PRESET, task=task, seed=seed)):
        # A backend that is asked for is the only one, under the preset's own name too.
        backend = asked.task.backend if config.task.name == asked.task.name else config.task.backend
        # Of an alias with `auto`, every backend, its choice first.
        backends = [resolve(config.task.model_copy(update={"backend": backend})).config.backend]
        if backend == "auto":
            backends += [other for other in ALIASES.get(config.task.name or "", ()) if other != backends[0]]
        tasks = [config.task.model_copy(update={"backend": choice}) for choice in backends]
        places = [default_path(Path(), config, resolve(each).label) for each in tasks]
        existing = [path for path in places if (path / "run.json").is_file()]
        if existing:
            chosen, *others = existing
            if others or chosen != places[0]:
                rest = f"also {', '.join(map(str, others))}" if others else f"no {places[0]}"
                typer.echo(f"--resume: goes on with {chosen}; there is {rest}", err=True)
            return chosen
    return None
