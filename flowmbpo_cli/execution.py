"""From a resolved config to a run, for every command that trains."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from typer.core import TyperCommand

from flowmbpo.errors import RunDirectoryError
from flowmbpo_cli.output import only_document, people, print_document

if TYPE_CHECKING:
    from flowmbpo.config.experiment import ExperimentConfig

AUTO: Literal["auto"] = "auto"
_RESUMABLE = 75
_LONG = ("lineage", "per_task", "start", "data")  # parts of an outcome that are shown apart, or not to people


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


def stored_run(resume: str | None) -> Path | None:
    """The run or checkpoint that `--resume` names; None where it names none. Raises RunDirectoryError."""
    if resume is None or resume == AUTO:
        return None
    path = Path(resume).expanduser()
    if not path.exists():
        raise RunDirectoryError(f"--resume {resume}: does not exist. Give a run directory or a checkpoint (.pt).")
    return path


def execute(
    config: ExperimentConfig,
    *,
    out: Path | None,
    resume: Path | Literal["auto"] | None,
    dry_run: bool,
    json_: bool,
) -> None:
    """Train, or report what would be trained; exits with 75 where the run was interrupted."""
    if dry_run:
        _dry_run(config, json_)
        return
    from flowmbpo import runs

    with only_document(json_):
        outcome = runs.train(config, out=out, resume=resume, command=["flowmbpo", *sys.argv[1:]]).to_dict()
    if json_:
        print_document(outcome)
    else:
        _summarise(outcome)
    if outcome["status"] == "interrupted":
        again = f"Go on with:  flowmbpo train --resume {shlex.quote(outcome['run_dir'])}"
        people(json_).print(again, markup=False, soft_wrap=True)
        raise typer.Exit(_RESUMABLE)


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
        columns = ["phase", "name", "epochs", "env_steps", "data_transitions"]
        print_table(console, "lineage", columns, [[run[column] for column in columns] for run in lineage])
    run_dir = shlex.quote(outcome["run_dir"])
    if outcome.get("final_return_mean", 0.0) is None:
        again = f"Look at it:  flowmbpo diagnose all {run_dir}"
    else:
        again = f"Look at it:  flowmbpo eval {run_dir} --plot curve.png"
    console.print(again, markup=False, soft_wrap=True)
