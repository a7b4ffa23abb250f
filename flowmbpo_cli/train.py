"""`flowmbpo train`, and `pretrain`, `finetune` and `specialize`: the stages A, B and C of the study.

A command takes what is its own, checks it, and answers with its stage; `_trains` adds what all have, and runs it.
"""

from __future__ import annotations

import functools
import inspect
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from typer.core import TyperCommand

from flowmbpo.errors import RunDirectoryError
from flowmbpo_cli.output import Json, answer
from flowmbpo_cli.sources import complete_preset, existing_run, stored_config, task_option

if TYPE_CHECKING:
    from flowmbpo.config.experiment import ExperimentConfig
    from flowmbpo.stages.config import Request, Stage

AUTO: Literal["auto"] = "auto"
_RESUMABLE = 75
_LONG = ("lineage", "per_task", "start", "data")  # parts of an outcome that are shown apart, or not to people


def _preset_option(default: str) -> Any:
    text = f"A preset's name or a .yaml file. [default: {default}]"
    return typer.Option(metavar="NAME|FILE", help=text, autocompletion=complete_preset)


_Preset = Annotated[str | None, _preset_option("the checkpoint's own config")]
_From = Annotated[
    Path | None,
    typer.Option("--from", metavar="CKPT", help="Start from these weights: a checkpoint (.pt), or a run: its latest."),
]
_EmbeddingFrom = Annotated[
    str | None,
    task_option(
        "Whose embedding a task starts with that the checkpoint never saw. [default: the nearest task's]", "TASK"
    ),
]
_PretrainingData = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A dataset for training.pretrain_steps or a distillation.")
]
_Tracker = Literal["none", "wandb", "tensorboard"]


def _shared(
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one config key; repeatable.")
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Where the networks compute.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run directory itself. [default: outputs/PHASE/TASK/NAME/seedN]")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[RUN_DIR|CKPT]",
            help="Go on with a run; without a value, the one that the other options would have.",
        ),
    ] = None,
    track: Annotated[_Tracker | None, typer.Option(help="Where metrics go beside metrics.jsonl.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Resolve everything, build the models, report; train nothing.")
    ] = False,
    json_: Json = False,
) -> None:
    """The options of every command that trains."""


def _trains(command: Callable[..., str]) -> Callable[..., None]:
    """A command with `command`'s options and the shared ones, which runs the stage that `command` makes of them."""

    @functools.wraps(command)
    def trained(**options: Any) -> None:
        _run(cast("Stage", command(**options)), **options)

    own, shared = (inspect.signature(each, eval_str=True).parameters.values() for each in (command, _shared))
    named = [each for each in own if each.kind is not inspect.Parameter.VAR_KEYWORD]
    trained.__signature__ = inspect.Signature([*named, *shared])  # type: ignore[attr-defined]  # what Typer reads
    return trained


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


@_trains
def train(
    preset: Annotated[str | None, _preset_option("quickstart, or the checkpoint's own config")] = None,
    checkpoint: _From = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="A dataset (see `flowmbpo data`).")] = None,
    task: Annotated[
        str | None, task_option("Another task, such as walker-stand; with --from, the one task of its set.")
    ] = None,
    **shared: Any,
) -> str:
    """Train a world model and a policy on one task.

    With --from and --data: the policy alone, in the checkpoint's world model as it is, from the dataset's states.
    """
    return "train" if checkpoint is None or data is None else "policy"


@_trains
def pretrain(
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="The dataset to learn from.")] = None,
    preset: _Preset = None,
    checkpoint: _From = None,
    policy: Annotated[
        bool | None, typer.Option("--policy/--no-policy", help="Also train one policy for all tasks, offline.")
    ] = None,
    **shared: Any,
) -> str:
    """Stage A: learn a world model (and optionally a policy) from a dataset."""
    return "pretrain"


@_trains
def finetune(
    preset: _Preset = None,
    checkpoint: _From = None,
    data: _PretrainingData = None,
    embedding_from: _EmbeddingFrom = None,
    **shared: Any,
) -> str:
    """Stage B: learn online over a task set, every task in every batch, from a checkpoint or from scratch."""
    return "finetune"


@_trains
def specialize(
    task: Annotated[str | None, task_option("The one task, known to the checkpoint or new.")] = None,
    checkpoint: _From = None,
    preset: _Preset = None,
    data: _PretrainingData = None,
    embedding_from: _EmbeddingFrom = None,
    **shared: Any,
) -> str:
    """Stage C: learn one task online, from a checkpoint of many tasks (or of another)."""
    missing = [flag for flag, value in (("--from CKPT", checkpoint), ("--task TASK", task)) if value is None]
    if missing and (shared["resume"] is None or checkpoint is not None):
        raise typer.BadParameter(
            f"needs {' and '.join(missing)}: which weights to start from, and the one task to learn. "
            "From scratch: `flowmbpo train --preset NAME --task TASK`."
        )
    return "specialize"


def _run(
    stage: Stage,
    *,
    overrides: Sequence[str] | None,
    track: _Tracker | None,
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
    from flowmbpo.stages.config import Request, stage_config

    sinks = None if track is None else [] if track == "none" else [track]
    learn: Literal["all", "model"] | None = None if policy is None else "all" if policy else "model"
    request = Request(stage, overrides=overrides or (), track=sinks, learn=learn, **asked)
    stored = _stored_run(request, out, resume)
    own = None if stored is None else stored_config(stored)
    if request.checkpoint is not None:
        from flowmbpo.checkpoints.load import resolve as checkpoint_file

        file = checkpoint_file(request.checkpoint.expanduser())
        request = replace(request, checkpoint=file, source=stored_config(file))
    named = request.preset is not None or request.checkpoint is not None
    config = stage_config(request) if own is None or named else _continued(request, own)
    if own is not None:
        config = config.model_copy(update={"name": own.name, "task": pin_as_stored(config.task, own.task)})
    # What is not known is refused here, before torch is imported.
    config = config.model_copy(update={"task": resolve(config.task).config})
    if dry_run:
        from flowmbpo.runs.start import dry_run as report

        answer(report(config), json_, _show_dry_run)
        return
    from flowmbpo.runs.train import train

    command, begun = ["flowmbpo", *sys.argv[1:]], AUTO if stored is None and resume is not None else stored
    outcome = train(config, out=out, resume=begun, command=command).to_dict()
    answer(outcome, json_, _show_outcome)
    if outcome["status"] == "interrupted":
        typer.echo(f"Go on with:  flowmbpo train --resume {shlex.quote(outcome['run_dir'])}")
        raise typer.Exit(_RESUMABLE)


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


def _continued(request: Request, stored: ExperimentConfig) -> ExperimentConfig:
    from flowmbpo.presets.load import override

    if request.is_plain:
        return override(stored, request.overrides, task=request.task, **request.flags)
    fixed = {"--task": request.task, "--embedding-from": request.embedding_from, "--policy": request.learn}
    given = [flag for flag, value in fixed.items() if value is not None]
    if given:
        raise typer.BadParameter(
            f"a run that goes on keeps its own; leave {' and '.join(given)} away, or repeat the whole command line.",
            param_hint=" / ".join(given),
        )
    config = override(stored, request.overrides, **request.flags)
    if request.data is None:
        return config
    if config.data is None:
        raise typer.BadParameter("the run that goes on reads no dataset; leave it away.", param_hint="--data")
    moved = config.data.model_copy(update={"path": str(request.data.expanduser().absolute())})
    return config.model_copy(update={"data": moved})


def _show_dry_run(report: dict[str, Any]) -> None:
    from flowmbpo_cli.tables import print_pairs, print_tree

    sections = {key: value for key, value in report.items() if isinstance(value, (dict, list))}
    for title, content in sections.items():
        print_tree(title.replace("_", " "), content)
    print_pairs("run", {key: value for key, value in report.items() if key not in sections})
    typer.echo("Dry run: nothing was trained and nothing was written.")


def _show_outcome(outcome: dict[str, Any]) -> None:
    from flowmbpo_cli.tables import print_pairs, print_table

    figures = {key: value for key, value in outcome.items() if key not in _LONG}
    start, per_task, lineage = (outcome.get(key) or {} for key in ("start", "per_task", "lineage"))
    if start:
        figures["start_return_mean"] = start["return_mean"]
    print_pairs("training", figures)
    if len(per_task) > 1:
        rows = [[task, *own.values()] for task, own in per_task.items()]
        print_table("per task", ["task", "episodes", "return", "success"], rows)
    if len(lineage) > 1:
        columns = ["phase", "name", "epochs", "agent_steps", "env_steps", "data_transitions"]
        print_table("lineage", columns, [[run[column] for column in columns] for run in lineage])
    run_dir = shlex.quote(outcome["run_dir"])
    no_return = outcome.get("final_return_mean", 0.0) is None
    look = f"diagnose all {run_dir}" if no_return else f"eval {run_dir} --plot curve.png"
    typer.echo(f"Look at it:  flowmbpo {look}")
