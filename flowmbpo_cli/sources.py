"""Where a config comes from: a preset's name, a YAML file, a run directory, or a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowmbpo.errors import RunDirectoryError

if TYPE_CHECKING:
    from flowmbpo.config.experiment import ExperimentConfig

DEFAULT_PRESET = "quickstart"


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

    A run that is resumed keeps its name whatever is overridden: it stays in its directory. Where the
    config leaves an alias open, a resumed run keeps its backend too. Raises ConfigError, also for an
    unknown task or a backend that does not run it.
    """
    from flowmbpo.envs.resolve import pin_as_stored, pin_backend, run_label
    from flowmbpo.presets.load import load_experiment, override

    if stored is None:
        name = preset or DEFAULT_PRESET
        config = load_experiment(name, overrides, task=task, seed=seed, device=device, track=track)
    else:
        run = stored_config(stored)
        base = run if preset is None else load_experiment(preset).model_copy(update={"name": run.name})
        config = override(base, overrides, task=task, seed=seed, device=device, track=track)
        config = config.model_copy(update={"task": pin_as_stored(config.task, run.task)})
    run_label(config.task)  # refuses what is not known, before torch is imported
    return config.model_copy(update={"task": pin_backend(config.task)})


def existing_run(preset: str | None, overrides: Sequence[str], *, task: str | None, seed: int | None) -> Path | None:
    """The run that a bare `--resume` means: this preset, task and seed's, if there is one.

    It is looked for under the overrides' own name first, then under the preset's: overrides may
    belong to the run, or be what its continuation changes (`--resume --set training.epochs=N`). Of
    an alias, a run of any backend will do, the one that `auto` takes here before others; stderr
    says which it is where there was a choice.
    """
    from flowmbpo.presets.load import load_experiment

    asked = load_experiment(preset or DEFAULT_PRESET, overrides, task=task, seed=seed)
    for config in (asked, load_experiment(preset or DEFAULT_PRESET, task=task, seed=seed)):
        # A backend that is asked for is the only one, under the preset's own name too.
        backend = asked.task.backend if config.task.name == asked.task.name else config.task.backend
        places = list(_run_places(config, backend))
        found = [path for path in places if (path / "run.json").is_file()]
        if found:
            others = ", ".join(str(path) for path in found[1:])
            if others:
                print(f"--resume: goes on with {found[0]}; there is also {others}", file=sys.stderr)
            elif found[0] != places[0]:
                print(f"--resume: goes on with {found[0]}; there is no {places[0]}", file=sys.stderr)
            return found[0]
    return None


def _run_places(config: ExperimentConfig, backend: str) -> Iterator[Path]:
    """Where runs of this config would lie: of an alias with `auto`, with every backend, its choice first."""
    from flowmbpo.envs.resolve import pin_backend, run_label
    from flowmbpo.envs.tasks import ALIASES
    from flowmbpo.runs.directory import default_path

    own = config.task.model_copy(update={"backend": backend})
    name, backends = own.name, [pin_backend(own).backend]
    if backend == "auto" and name is not None and name in ALIASES:
        backends += [other for other in ALIASES[name] if other != backends[0]]
    for choice in backends:
        task = own.model_copy(update={"backend": choice})
        yield default_path(Path(), config, run_label(task))
