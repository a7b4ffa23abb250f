"""`flowmbpo train`, and `pretrain`, `finetune` and `specialize`: the stages A, B and C of the study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowmbpo_cli import run_options as options
from flowmbpo_cli.output import Json
from flowmbpo_cli.sources import complete_preset, complete_task


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
    json_: Json = False,
) -> None:
    """Train a world model and a policy on one task.

    With --from and --data: the policy alone, in the checkpoint's world model as it is, from the dataset's states.
    """
    options.run("train" if checkpoint is None or data is None else "policy", **locals())


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
    json_: Json = False,
) -> None:
    """Stage A: learn a world model (and optionally a policy) from a dataset."""
    options.run("pretrain", **locals())


def finetune(
    preset: options.Preset = None,
    checkpoint: options.From = None,
    data: options.PretrainingData = None,
    embedding_from: options.EmbeddingFrom = None,
    seed: options.Seed = None,
    overrides: options.Overrides = None,
    device: options.Device = None,
    out: options.Out = None,
    resume: options.Resume = None,
    track: options.Track = None,
    dry_run: options.DryRun = False,
    json_: Json = False,
) -> None:
    """Stage B: learn online over a task set, every task in every batch, from a checkpoint or from scratch."""
    options.run("finetune", **locals())


def specialize(
    task: Annotated[
        str | None, typer.Option(help="The one task, known to the checkpoint or new.", autocompletion=complete_task)
    ] = None,
    checkpoint: options.From = None,
    preset: options.Preset = None,
    data: options.PretrainingData = None,
    embedding_from: options.EmbeddingFrom = None,
    seed: options.Seed = None,
    overrides: options.Overrides = None,
    device: options.Device = None,
    out: options.Out = None,
    resume: options.Resume = None,
    track: options.Track = None,
    dry_run: options.DryRun = False,
    json_: Json = False,
) -> None:
    """Stage C: learn one task online, from a checkpoint of many tasks (or of another)."""
    if resume is None or checkpoint is not None:
        _check_named(checkpoint, task)
    options.run("specialize", **locals())


def _check_named(checkpoint: Path | None, task: str | None) -> None:
    missing = [flag for flag, value in (("--from CKPT", checkpoint), ("--task TASK", task)) if value is None]
    if missing:
        raise typer.BadParameter(
            f"needs {' and '.join(missing)}: which weights to start from, and the one task to learn. "
            "From scratch: `flowmbpo train --preset NAME --task TASK`."
        )
