"""The options that every command which trains shares, and how a stage's become a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from flowmbpo_cli.execution import AUTO, execute, stored_run
from flowmbpo_cli.sources import complete_preset, stored_config

if TYPE_CHECKING:
    from flowmbpo.config.experiment import ExperimentConfig
    from flowmbpo.stages.config import Stage

Preset: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="A preset's name or a .yaml file. [default: the checkpoint's own config]",
        autocompletion=complete_preset,
    ),
]
From: TypeAlias = Annotated[
    Path | None,
    typer.Option("--from", metavar="CKPT", help="Start from these weights: a checkpoint (.pt), or a run: its latest."),
]
Data: TypeAlias = Annotated[Path | None, typer.Option(metavar="DIR", help="A dataset (see `flowmbpo data`).")]
Seed: TypeAlias = Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")]
Overrides: TypeAlias = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one config key; repeatable.")
]
Device: TypeAlias = Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Where the networks compute.")]
Out: TypeAlias = Annotated[
    Path | None, typer.Option(help="The run directory itself. [default: outputs/PHASE/TASK/NAME/seedN]")
]
Resume: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="[RUN_DIR|CKPT]",
        help="Go on with a run; without a value, the one that the other options would have.",
    ),
]
Tracker = Literal["none", "wandb", "tensorboard"]
Track: TypeAlias = Annotated[Tracker | None, typer.Option(help="Where metrics go beside metrics.jsonl.")]
DryRun: TypeAlias = Annotated[
    bool, typer.Option("--dry-run", help="Resolve everything, build the models, report; train nothing.")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@dataclass(frozen=True)
class Asked:
    """A stage's options, as they were given."""

    stage: Stage
    preset: str | None
    checkpoint: Path | None
    data: Path | None
    task: str | None
    embedding_from: str | None
    overrides: Sequence[str]
    seed: int | None
    device: str | None
    track: Tracker | None
    learn: Literal["all", "model"] | None = None

    @property
    def says_what_to_run(self) -> bool:
        """Whether a config follows from them, or they only change the one of a run that goes on."""
        return self.preset is not None or self.checkpoint is not None


def sinks(track: Tracker | None) -> list[str] | None:
    """The config's sinks that `--track` means; None where it is not given."""
    return None if track is None else [] if track == "none" else [track]


def run(asked: Asked, *, out: Path | None, resume: str | None, dry_run: bool, json_: bool) -> None:
    """Resolve the stage's config and train it.

    `--resume RUN` alone goes on with that run's config; beside a preset or a checkpoint, the options must
    describe the run that it names.
    """
    stored = out if resume == AUTO else stored_run(resume)
    if stored is None:
        config = _resolved(asked)
    elif asked.says_what_to_run:
        config = _resolved(asked).model_copy(update={"name": stored_config(stored).name})  # it stays in its directory
    else:
        config = _continued(asked, stored_config(stored))
    resumed = AUTO if stored is None and resume is not None else stored
    execute(config, out=out, resume=resumed, dry_run=dry_run, json_=json_)


def _continued(asked: Asked, stored: ExperimentConfig) -> ExperimentConfig:
    """The config of a run that goes on, with what may change of it."""
    from flowmbpo.presets.load import override

    fixed = {"--task": asked.task, "--embedding-from": asked.embedding_from, "--policy": asked.learn}
    given = [flag for flag, value in fixed.items() if value is not None]
    if given:
        raise typer.BadParameter(
            f"a run that goes on keeps its own; leave {' and '.join(given)} away, or repeat the whole command line.",
            param_hint=" / ".join(given),
        )
    config = override(stored, asked.overrides, seed=asked.seed, device=asked.device, track=sinks(asked.track))
    if asked.data is None:
        return config
    if config.data is None:
        raise typer.BadParameter("the run that goes on reads no dataset; leave it away.", param_hint="--data")
    moved = config.data.model_copy(update={"path": str(asked.data.expanduser().absolute())})
    return config.model_copy(update={"data": moved})


def _resolved(asked: Asked) -> ExperimentConfig:
    from flowmbpo.stages.config import Request, stage_config

    file, source = None, None
    if asked.checkpoint is not None:
        from flowmbpo.checkpoints.load import resolve

        file = resolve(asked.checkpoint.expanduser())
        source = stored_config(file)
    return stage_config(
        Request(
            stage=asked.stage,
            preset=asked.preset,
            checkpoint=file,
            source=source,
            data=asked.data,
            task=asked.task,
            embedding_from=asked.embedding_from,
            overrides=asked.overrides,
            seed=asked.seed,
            device=asked.device,
            track=sinks(asked.track),
            learn=asked.learn,
        )
    )
