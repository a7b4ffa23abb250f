"""The options that every command which trains shares, and the one road from them to a run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer
from typer.core import TyperCommand

from flowmbpo.errors import RunDirectoryError
from flowmbpo_cli.output import only_document, people, print_document
from flowmbpo_cli.sources import complete_preset, complete_task, existing_run, stored_config

if TYPE_CHECKING:
    from flowmbpo.config.experiment import ExperimentConfig
    from flowmbpo.stages.config import Request, Stage

AUTO: Literal["auto"] = "auto"
_RESUMABLE = 75
_LONG = ("lineage", "per_task", "start", "data")  # parts of an outcome that are shown apart, or not to people

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
EmbeddingFrom: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="TASK",
        help="Whose embedding a task starts with that the checkpoint never saw. [default: the nearest task's]",
        autocompletion=complete_task,
    ),
]

PretrainingData: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A dataset for training.pretrain_steps or a distillation.")
]


class TrainCommand(TyperCommand):
    """Lets `--resume` stand without a value, wherever it stands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse with the missing value of `--resume` filled in."""
        return super().parse_args(ctx, with_resume_value(args))


def with_resume_value(args: Sequence[str]) -> list[str]:
    """`args` with `auto` after each `--resume` that the end or another option follows."""
    result: list[str] = []
    for index, arg in enumerate(args):
        result.append(arg)
        follower = args[index + 1] if index + 1 < len(args) else "-"
        if arg == "--resume" and follower.startswith("-"):
            result.append(AUTO)
    return result


def run(
    stage: Stage,
    *,
    overrides: Sequence[str] | None,
    track: Tracker | None,
    out: Path | None,
    resume: str | None,
    dry_run: bool,
    json_: bool,
    policy: bool | None = None,
    **asked: Any,
) -> None:
    """Resolve a stage's options to a config and train it; exits with 75 where the run was interrupted.

    `--resume RUN` alone goes on with that run's config; beside a preset or a checkpoint, the options must
    describe the run that it names. What is resumed keeps its name, whatever is overridden: it stays in its directory.
    """
    from flowmbpo.envs.resolve import pin_as_stored, resolve
    from flowmbpo.stages.config import Request

    sinks = None if track is None else [] if track == "none" else [track]
    learn: Literal["all", "model"] | None = None if policy is None else "all" if policy else "model"
    request = Request(stage, overrides=overrides or (), track=sinks, learn=learn, **asked)
    stored = _stored_run(request, out, resume)
    if stored is None:
        config = _new(request)
    else:
        own = stored_config(stored)
        named = request.preset is not None or request.checkpoint is not None
        config = _new(request) if named else _continued(request, own)
        config = config.model_copy(update={"name": own.name, "task": pin_as_stored(config.task, own.task)})
    # What is not known is refused here, before torch is imported.
    config = config.model_copy(update={"task": resolve(config.task).config})
    if dry_run:
        _dry_run(config, json_)
    else:
        _train(config, out, AUTO if stored is None and resume is not None else stored, json_)


def _stored_run(request: Request, out: Path | None, resume: str | None) -> Path | None:
    """The run or checkpoint to go on with; None where there is none yet. Raises RunDirectoryError."""
    if resume is None:
        return None
    if resume == AUTO:
        if out is None and request.is_plain:
            return existing_run(request.preset, request.overrides, task=request.task, seed=request.seed)
        return out
    path = Path(resume).expanduser()
    if not path.exists():
        raise RunDirectoryError(f"--resume {resume}: does not exist. Give a run directory or a checkpoint (.pt).")
    return path


def _new(request: Request) -> ExperimentConfig:
    from flowmbpo.stages.config import stage_config

    if request.checkpoint is None:
        return stage_config(request)
    from flowmbpo.checkpoints.load import resolve

    file = resolve(request.checkpoint.expanduser())
    return stage_config(replace(request, checkpoint=file, source=stored_config(file)))


def _flags(request: Request) -> dict[str, Any]:
    return {"seed": request.seed, "device": request.device, "track": request.track}


def _continued(request: Request, stored: ExperimentConfig) -> ExperimentConfig:
    """The config of a run that goes on, with what may change of it."""
    from flowmbpo.presets.load import override

    if request.is_plain:
        return override(stored, request.overrides, task=request.task, **_flags(request))
    fixed = {"--task": request.task, "--embedding-from": request.embedding_from, "--policy": request.learn}
    given = [flag for flag, value in fixed.items() if value is not None]
    if given:
        raise typer.BadParameter(
            f"a run that goes on keeps its own; leave {' and '.join(given)} away, or repeat the whole command line.",
            param_hint=" / ".join(given),
        )
    config = override(stored, request.overrides, **_flags(request))
    if request.data is None:
        return config
    if config.data is None:
        raise typer.BadParameter("the run that goes on reads no dataset; leave it away.", param_hint="--data")
    moved = config.data.model_copy(update={"path": str(request.data.expanduser().absolute())})
    return config.model_copy(update={"data": moved})


def _train(config: ExperimentConfig, out: Path | None, resume: Path | Literal["auto"] | None, json_: bool) -> None:
    from flowmbpo.runs.train import train

    with only_document(json_):
        outcome = train(config, out=out, resume=resume, command=["flowmbpo", *sys.argv[1:]]).to_dict()
    if json_:
        print_document(outcome)
    else:
        _summarise(outcome)
    if outcome["status"] == "interrupted":
        again = f"Go on with:  flowmbpo train --resume {shlex.quote(outcome['run_dir'])}"
        people(json_).print(again, markup=False, soft_wrap=True)
        raise typer.Exit(_RESUMABLE)


def _dry_run(config: ExperimentConfig, json_: bool) -> None:
    from flowmbpo.runs.start import dry_run

    with only_document(json_):
        report = dry_run(config)
    if json_:
        print_document(report)
        return
    from flowmbpo_cli.tables import print_pairs, print_tree

    console = people(json_)
    sections = {key: value for key, value in report.items() if isinstance(value, (dict, list))}
    for title, content in sections.items():
        print_tree(console, title.replace("_", " "), content)
    print_pairs(console, "run", {key: value for key, value in report.items() if key not in sections})
    console.print("Dry run: nothing was trained and nothing was written.")


def _summarise(outcome: dict[str, Any]) -> None:
    from flowmbpo_cli.tables import print_pairs, print_table

    console = people(False)
    figures = {key: value for key, value in outcome.items() if key not in _LONG}
    start, per_task, lineage = (outcome.get(key) or {} for key in ("start", "per_task", "lineage"))
    if start:
        figures["start_return_mean"] = start["return_mean"]
    print_pairs(console, "training", figures)
    if len(per_task) > 1:
        rows = [[task, *own.values()] for task, own in per_task.items()]
        print_table(console, "per task", ["task", "episodes", "return", "success"], rows)
    if len(lineage) > 1:
        columns = ["phase", "name", "epochs", "agent_steps", "env_steps", "data_transitions"]
        print_table(console, "lineage", columns, [[run[column] for column in columns] for run in lineage])
    run_dir = shlex.quote(outcome["run_dir"])
    if outcome.get("final_return_mean", 0.0) is None:
        again = f"Look at it:  flowmbpo diagnose all {run_dir}"
    else:
        again = f"Look at it:  flowmbpo eval {run_dir} --plot curve.png"
    console.print(again, markup=False, soft_wrap=True)
