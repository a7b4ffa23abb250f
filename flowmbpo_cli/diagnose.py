"""`flowmbpo diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flowmbpo.diagnostics.interface import SUMMARIES, Brief
from flowmbpo.errors import ConfigError, nearest
from flowmbpo_cli.output import Json, answer
from flowmbpo_cli.sources import check_target, task_option

if TYPE_CHECKING:
    from flowmbpo.runs.diagnose import DiagnoseOutcome

ALL = "all"
FAILED = 1
UNHEALTHY = 3


def complete_name(incomplete: str) -> list[tuple[str, str]]:
    """Shell completion: the diagnostics and what each is for."""
    every = {**SUMMARIES, ALL: "Every one of them, as one JSON document and one HTML page."}
    return [(name, summary) for name, summary in every.items() if name.startswith(incomplete)]


def diagnose(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help=", ".join((*SUMMARIES, ALL)) + ".", autocompletion=complete_name)
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Argument(metavar="[CKPT]", help="A checkpoint (.pt) or a run directory. [default: the newest run's]"),
    ] = None,
    task: Annotated[str | None, task_option("One task of the set that was trained on.")] = None,
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
    if name != ALL and name not in SUMMARIES:
        raise ConfigError(
            f"unknown diagnostic '{name}'.{nearest(name, (*SUMMARIES, ALL))} There are: {', '.join((*SUMMARIES, ALL))}"
        )
    if task is not None:
        from flowmbpo.envs.tasks import task_info

        task_info(task)
    check_target("--plot", plot, ".png")
    if out is not None and name != ALL:
        raise typer.BadParameter(f"only `diagnose {ALL}` writes files; '{name}' has --plot.", param_hint="--out")
    from flowmbpo.diagnostics.interface import Effort
    from flowmbpo.runs.diagnose import claim_folder, write_report
    from flowmbpo.runs.diagnose import diagnose as run
    from flowmbpo.runs.subjects import newest_checkpoint

    if checkpoint is None:
        checkpoint = newest_checkpoint()
        typer.echo(f"No checkpoint named: diagnosing {checkpoint}, the newest under outputs/.", err=True)
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
        progress=lambda each: typer.echo(f"Measuring {each} ({names.index(each) + 1} of {len(names)}) ...", err=True),
    )
    document, written = outcome.to_dict(), [] if plot is None else [plot]
    if name == ALL:
        document["files"] = write_report(outcome, folder or outcome.folder)
        written += document["files"].values()
    if plot is not None and outcome.diagnoses:
        from flowmbpo.diagnostics.page import write_picture

        write_picture(outcome.diagnoses, plot)
    answer(document, json_, lambda _: _show(outcome, verbose))
    for path in written:
        typer.echo(f"Wrote {path}")
    if not outcome.healthy:
        raise typer.Exit(UNHEALTHY)
    if outcome.failed:
        raise typer.Exit(FAILED)


def _show(outcome: DiagnoseOutcome, verbose: bool) -> None:
    typer.echo(f"{outcome.config} on {outcome.task}, epoch {outcome.origin.epoch:,}: {outcome.origin.checkpoint}")
    for each in outcome.measured:
        if each.diagnosis is not None:
            show_brief(each.diagnosis.whole() if verbose else each.diagnosis.brief())
        else:
            typer.echo(f"{each.name}\nNot measured: {each.error}\n")


def show_brief(brief: Brief) -> None:
    """Its title, its table and its remarks."""
    from flowmbpo_cli.tables import print_table

    print_table(brief.title, brief.columns, brief.rows)
    for remark in brief.remarks:
        typer.echo(remark)
