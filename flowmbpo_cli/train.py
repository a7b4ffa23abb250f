"""`flowmbpo train`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from flowmbpo.errors import RunDirectoryError
from flowmbpo_cli.output import only_document, people, print_document
from flowmbpo_cli.sources import complete_preset, complete_task, existing_run, resolve_config

if TYPE_CHECKING:
    from flowmbpo.config.experiment import ExperimentConfig

AUTO: Literal["auto"] = "auto"
_RESUMABLE = 75


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


def train(
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="A preset's name or a .yaml file. [default: quickstart]",
            autocompletion=complete_preset,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Another task, such as walker-stand.", autocompletion=complete_task)
    ] = None,
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
            help="Go on with a run; without a value, the one that this preset and seed would have.",
        ),
    ] = None,
    track: Annotated[
        Literal["none", "wandb", "tensorboard"] | None, typer.Option(help="Where metrics go beside metrics.jsonl.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Resolve everything, build the models, report; train nothing.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Train a world model and a policy on one task."""
    stored = _stored(resume)
    if resume == AUTO:
        stored = out if out is not None else existing_run(preset, overrides or [], task=task, seed=seed)
    sinks = None if track is None else [] if track == "none" else [track]
    config = resolve_config(preset, overrides or [], stored, task=task, seed=seed, device=device, track=sinks)
    if dry_run:
        _dry_run(config, json_)
        return
    from flowmbpo import runs

    command = ["flowmbpo", *sys.argv[1:]]
    resumed: Path | Literal["auto"] | None = stored if stored is not None or resume is None else AUTO
    with only_document(json_):
        outcome = runs.train(config, out=out, resume=resumed, command=command).to_dict()
    if json_:
        print_document(outcome)
    else:
        _summarise(outcome)
    if outcome["status"] == "interrupted":
        again = f"Go on with:  flowmbpo train --resume {shlex.quote(outcome['run_dir'])}"
        people(json_).print(again, markup=False, soft_wrap=True)
        raise typer.Exit(_RESUMABLE)


def _stored(resume: str | None) -> Path | None:
    if resume is None or resume == AUTO:
        return None
    path = Path(resume).expanduser()
    if not path.exists():
        raise RunDirectoryError(f"--resume {resume}: does not exist. Give a run directory or a checkpoint (.pt).")
    return path


def _dry_run(config: ExperimentConfig, json_: bool) -> None:
    from flowmbpo import runs

    with only_document(json_):
        report = runs.dry_run(config).to_dict()
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
    from flowmbpo_cli.tables import print_pairs

    console = people(False)
    print_pairs(console, "training", outcome)
    run_dir = shlex.quote(outcome["run_dir"])
    console.print(f"Look at it:  flowmbpo eval {run_dir} --plot curve.png", markup=False, soft_wrap=True)
