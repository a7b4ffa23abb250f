"""`flowmbpo diagnose`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flowmbpo.diagnostics.interface import SUMMARIES, Brief
from flowmbpo.errors import ConfigError, nearest
from flowmbpo_cli.evaluate import check_suffix
from flowmbpo_cli.output import Json, only_document, people, print_document
from flowmbpo_cli.sources import complete_task

if TYPE_CHECKING:
    from rich.console import Console

    from flowmbpo.runs.diagnose import DiagnoseOutcome, ReportFiles

ALL = "all"
FAILED = 1
UNHEALTHY = 3


def complete_name(incomplete: str) -> list[tuple[str, str]]:
    """Shell completion: the diagnostics and what each is for."""
    every = {**SUMMARIES, ALL: "Every one of them, as one JSON document and one HTML page."}
    return [(name, summary) for name, summary in every.items() if name.startswith(incomplete)]


def diagnose(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help=", ".join((*SUMMARIES, ALL)) + ".", autocompletion=complete_name),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Argument(metavar="[CKPT]", help="A checkpoint (.pt) or a run directory. [default: the newest run's]"),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="One task of the set that was trained on.", autocompletion=complete_task)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=1_000_000_000, help="Seed of episodes and draws.")] = 0,
    episodes: Annotated[int | None, typer.Option(min=2, help="Real episodes to judge by. [default: 8]")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the networks compute.")] = "auto",
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the figures.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where `all` puts its files. [default: results/PHASE/TASK/NAME/seedN]"),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Every figure of `health`, not its verdict alone.")
    ] = False,
    json_: Json = False,
) -> None:
    """Tell what a run's model, policy and gradients are worth, and what is broken.

    Exit code 3: unhealthy. 1: a diagnostic failed.
    """
    _check(name, task, plot, out)
    with only_document(json_):
        outcome, files = _measure(name, checkpoint, task, seed, episodes, device, plot, out)
    if json_:
        print_document(outcome.to_dict() | ({} if files is None else {"files": files}))
    else:
        _print(outcome, verbose)
    for path in (plot, *((files.json, files.html) if files is not None else ())):
        if path is not None:
            people(json_).print(f"Wrote {path}", markup=False, soft_wrap=True)
    if not outcome.healthy:
        raise typer.Exit(UNHEALTHY)
    if outcome.failed:
        raise typer.Exit(FAILED)


def _check(name: str, task: str | None, plot: Path | None, out: Path | None) -> None:
    """Refuse what cannot work, before anything is loaded."""
    if name != ALL and name not in SUMMARIES:
        raise ConfigError(
            f"unknown diagnostic '{name}'.{nearest(name, (*SUMMARIES, ALL))} There are: {', '.join((*SUMMARIES, ALL))}"
        )
    if task is not None:
        from flowmbpo.envs.tasks import task_info

        task_info(task)
    check_suffix("--plot", plot, ".png")
    if out is not None and name != ALL:
        raise typer.BadParameter(f"only `diagnose {ALL}` writes files; '{name}' has --plot.", param_hint="--out")


def _measure(
    name: str,
    checkpoint: Path | None,
    task: str | None,
    seed: int,
    episodes: int | None,
    device: str,
    plot: Path | None,
    out: Path | None,
) -> tuple[DiagnoseOutcome, ReportFiles | None]:
    from flowmbpo.diagnostics.interface import Effort
    from flowmbpo.runs.diagnose import claim_folder, write_report
    from flowmbpo.runs.diagnose import diagnose as run
    from flowmbpo.runs.subjects import newest_checkpoint

    if checkpoint is None:
        checkpoint = newest_checkpoint()
        _say(f"No checkpoint named: diagnosing {checkpoint}, the newest under outputs/.")
    names = list(SUMMARIES) if name == ALL else [name]
    folder = None if out is None else out.expanduser()
    outcome = run(
        names,
        checkpoint.expanduser(),
        task=task,
        device=device,
        seed=seed,
        effort=Effort() if episodes is None else Effort(episodes=episodes),
        keep_going=name == ALL,
        prepare=(lambda planned: claim_folder(folder or planned.folder)) if name == ALL else None,
        progress=lambda each: _say(f"Measuring {each} ({names.index(each) + 1} of {len(names)}) ..."),
    )
    files = write_report(outcome, folder or outcome.folder) if name == ALL else None
    if plot is not None and outcome.diagnoses:
        from flowmbpo.diagnostics.page import write_picture

        write_picture(outcome.diagnoses, plot)
    return outcome, files


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print(outcome: DiagnoseOutcome, verbose: bool) -> None:
    console = people(False)
    origin = outcome.origin
    console.print(
        f"{outcome.config} on {outcome.task}, epoch {origin.epoch:,}: {origin.checkpoint}", markup=False, soft_wrap=True
    )
    for each in outcome.measured:
        if each.diagnosis is not None:
            print_brief(console, each.diagnosis.whole() if verbose else each.diagnosis.brief())
        else:
            console.print(f"{each.name}\nNot measured: {each.error}\n", markup=False, soft_wrap=True)


def print_brief(console: Console, brief: Brief) -> None:
    """Its title, its table and its remarks."""
    from flowmbpo_cli.tables import print_table

    print_table(console, brief.title, brief.columns, brief.rows)
    for remark in brief.remarks:
        console.print(remark, markup=False, soft_wrap=True)
