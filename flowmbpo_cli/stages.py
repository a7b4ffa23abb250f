"""`flowmbpo pretrain`, `finetune` and `specialize`: the stages A, B and C of the study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flowmbpo_cli import run_options as options
from flowmbpo_cli.sources import complete_task

EmbeddingFrom = Annotated[
    str | None,
    typer.Option(
        metavar="TASK",
        help="Whose embedding a task starts with that the checkpoint never saw. [default: the nearest task's]",
        autocompletion=complete_task,
    ),
]

PretrainingData = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A dataset for training.pretrain_steps or a distillation.")
]


def pretrain(
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="The dataset to learn from.")] = None,
    preset: options.Preset = None,
    checkpoint: options.From = None,
    policy: Annotated[
        bool | None, typer.Option("--policy/--no-policy", help="Also train one policy for all tasks, offline.")
    ] = None,
    seed: options.Seed = None,
    overrides: options.Overrides = None,
    device: options.Device = None,
    out: options.Out = None,
    resume: options.Resume = None,
    track: options.Track = None,
    dry_run: options.DryRun = False,
    json_: options.Json = False,
) -> None:
    """Stage A: learn a world model (and optionally a policy) from a dataset."""
    learn: Literal["all", "model"] | None = None if policy is None else "all" if policy else "model"
    asked = options.Asked("pretrain", preset, checkpoint, data, None, None, overrides or (), seed, device, track, learn)
    options.run(asked, out=out, resume=resume, dry_run=dry_run, json_=json_)


def finetune(
    preset: options.Preset = None,
    checkpoint: options.From = None,
    data: PretrainingData = None,
    embedding_from: EmbeddingFrom = None,
    seed: options.Seed = None,
    overrides: options.Overrides = None,
    device: options.Device = None,
    out: options.Out = None,
    resume: options.Resume = None,
    track: options.Track = None,
    dry_run: options.DryRun = False,
    json_: options.Json = False,
) -> None:
    """Stage B: learn online over a task set, every task in every batch, from a checkpoint or from scratch."""
    asked = options.Asked(
        "finetune", preset, checkpoint, data, None, embedding_from, overrides or (), seed, device, track
    )
    options.run(asked, out=out, resume=resume, dry_run=dry_run, json_=json_)


def specialize(
    task: Annotated[
        str | None, typer.Option(help="The one task, known to the checkpoint or new.", autocompletion=complete_task)
    ] = None,
    checkpoint: options.From = None,
    preset: options.Preset = None,
    data: PretrainingData = None,
    embedding_from: EmbeddingFrom = None,
    seed: options.Seed = None,
    overrides: options.Overrides = None,
    device: options.Device = None,
    out: options.Out = None,
    resume: options.Resume = None,
    track: options.Track = None,
    dry_run: options.DryRun = False,
    json_: options.Json = False,
) -> None:
    """Stage C: learn one task online, from a checkpoint of many tasks (or of another)."""
    if resume is None or checkpoint is not None:
        missing = [flag for flag, value in (("--from CKPT", checkpoint), ("--task TASK", task)) if value is None]
        if missing:
            raise typer.BadParameter(
                f"needs {' and '.join(missing)}: which weights to start from, and the one task to learn. "
                "From scratch: `flowmbpo train --preset NAME --task TASK`."
            )
    asked = options.Asked(
        "specialize", preset, checkpoint, data, task, embedding_from, overrides or (), seed, device, track
    )
    options.run(asked, out=out, resume=resume, dry_run=dry_run, json_=json_)
