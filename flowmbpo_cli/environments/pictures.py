"""A task's picture or video as a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flowmbpo.errors import ConfigError

if TYPE_CHECKING:
    from flowmbpo.config.task import TaskConfig
    from flowmbpo.envs.inspection.film import Motion

SUFFIXES = (".png", ".mp4")
FRAMES_PER_SECOND = 30.0
_STEPS = {".png": 20, ".mp4": 150}


def check_target(out: Path) -> None:
    """Refuse a file that could not be written, before anything is drawn for it."""
    if out.suffix.lower() not in SUFFIXES:
        raise typer.BadParameter(f"'{out}' must end in .png (one picture) or .mp4 (a video).", param_hint="OUT")
    if not out.absolute().parent.is_dir():
        raise typer.BadParameter(f"the folder '{out.parent}' does not exist. Create it first.", param_hint="OUT")
    if out.is_dir():
        raise typer.BadParameter(f"'{out}' is a folder. Name a file.", param_hint="OUT")


def draw(config: TaskConfig, out: Path, *, steps: int | None, seed: int, motion: Motion) -> dict[str, Any]:
    """Write the picture after `steps` agent steps, or the video of all of them, and say what was written.

    Raises ConfigError on a set of several tasks, EnvironmentUnavailableError where nothing can
    draw, StorageError where the file cannot be written.
    """
    from flowmbpo.envs.inspection.film import film, walk
    from flowmbpo.envs.make import open_env
    from flowmbpo.envs.resolve import resolve

    spec = resolve(config).spec
    if len(spec.tasks) > 1:
        raise ConfigError(
            f"'{spec.label}' is a set of {len(spec.tasks)} tasks and a picture shows one; name a task of it, such as "
            f"'{spec.tasks[0].name}'."
        )
    suffix = out.suffix.lower()
    steps = _STEPS[suffix] if steps is None else steps
    with open_env(config, 1, 0) as env:
        if suffix == ".mp4":
            from flowmbpo.tracking.video import write_video

            write_video(film(env, steps, seed, motion), out, FRAMES_PER_SECOND)
        else:
            for _ in walk(env, steps, seed, motion):
                pass
            _write_picture(env.render(0), out)
    return {"environment": spec.label, "path": str(out), "steps": steps, "seed": seed, "action": motion}


def _write_picture(frame: Any, out: Path) -> None:
    from matplotlib.image import imsave

    from flowmbpo.files import StagedFile

    with StagedFile(out) as staged:
        imsave(staged, frame, format="png")  # type: ignore[arg-type]  # it writes, which is all that is asked
        staged.commit()
