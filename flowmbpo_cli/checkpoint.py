"""`flowmbpo checkpoint`: look into checkpoint files, import published ones, export one's own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from flowmbpo_cli.output import Json, answer
from flowmbpo_cli.sources import task_option

app = typer.Typer(help="Inspect, import and export checkpoint files.", no_args_is_help=True, rich_markup_mode=None)


@app.command("inspect")
def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A .pt file (ours, TD-MPC2's, PWM's, Newt's), a run or an exported folder."
        ),
    ],
    json_: Json = False,
) -> None:
    """Show what a checkpoint holds, and of a published one what an import would keep and drop."""
    from flowmbpo.checkpoints.inspect import inspect_checkpoint

    answer(inspect_checkpoint(file.expanduser()), json_, partial(_show, "checkpoint"))


@app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A file of TD-MPC2, PWM or Newt, or an exported folder.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="CKPT.pt", help="Where to write it. [default: named after its config]")
    ] = None,
    task_set: Annotated[
        str | None, typer.Option(metavar="SET", help="The set it was trained on. [default: told by the shapes]")
    ] = None,
    task: Annotated[
        str | None, task_option("Of a single-task file: its task. Of a set's: the one member to run.")
    ] = None,
    keep_planner: Annotated[
        bool, typer.Option("--keep-planner/--no-planner", help="Take along what `eval --planner mppi` plans with.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing --out.")] = False,
    json_: Json = False,
) -> None:
    """Make a published checkpoint one that every command here accepts. Nothing in it is ever executed."""
    from flowmbpo.checkpoints.importers.conversion import import_checkpoint

    document = import_checkpoint(
        file.expanduser(),
        out=None if out is None else out.expanduser(),
        task_set=task_set,
        task=task,
        keep_planner=keep_planner,
        overwrite=overwrite,
    )
    answer(document, json_, partial(_show, "imported"))


@app.command("export")
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="A checkpoint (.pt), or a run: its latest.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    json_: Json = False,
) -> None:
    """Write safetensors, config and a model card; `checkpoint import DIR` reads them back bit for bit."""
    from flowmbpo.checkpoints.export import export_checkpoint

    answer(export_checkpoint(checkpoint.expanduser(), folder.expanduser()), json_, partial(_show, "exported"))


def _show(title: str, document: dict[str, Any]) -> None:
    from flowmbpo_cli.tables import print_pairs, print_table

    nested = {key: value for key, value in document.items() if isinstance(value, dict)}
    print_pairs(title, {key: value for key, value in document.items() if key not in nested and key != "notes"})
    for key, value in nested.items():
        if key == "parameters":
            print_table(key, ["part", "number"], list(value.items()))
        else:
            print_pairs(key, value)
    for note in document.get("notes", ()):
        typer.echo(f"Note: {note}")
