"""`flowmbpo train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flowmbpo_cli import run_options as options
from flowmbpo_cli.execution import AUTO, execute, stored_run
from flowmbpo_cli.sources import complete_preset, complete_task, existing_run, resolve_config

if TYPE_CHECKING:
    from flowmbpo.stages.config import Stage


def train(
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="A preset's name or a .yaml file. [default: quickstart, or the checkpoint's own config]",
            autocompletion=complete_preset,
        ),
    ] = None,
    checkpoint: options.From = None,
    data: options.Data = None,
    seed: options.Seed = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Another task, such as walker-stand; with --from, the one task of its set.",
            autocompletion=complete_task,
        ),
    ] = None,
    overrides: options.Overrides = None,
    device: options.Device = None,
    out: options.Out = None,
    resume: options.Resume = None,
    track: options.Track = None,
    dry_run: options.DryRun = False,
    json_: options.Json = False,
) -> None:
    """Train a world model and a policy on one task.

    With --from and --data: the policy alone, in the checkpoint's world model as it is, from the dataset's states.
    """
    if checkpoint is not None or data is not None:
        stage: Stage = "train" if checkpoint is None or data is None else "policy"
        asked = options.Asked(stage, preset, checkpoint, data, task, None, overrides or (), seed, device, track)
        options.run(asked, out=out, resume=resume, dry_run=dry_run, json_=json_)
        return
    stored = stored_run(resume)
    if resume == AUTO:
        stored = out if out is not None else existing_run(preset, overrides or [], task=task, seed=seed)
    sinks = options.sinks(track)
    config = resolve_config(preset, overrides or [], stored, task=task, seed=seed, device=device, track=sinks)
    resumed: Path | Literal["auto"] | None = stored if stored is not None or resume is None else AUTO
    execute(config, out=out, resume=resumed, dry_run=dry_run, json_=json_)
