"""`flowmbpo diagnose`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flowmbpo.diagnostics.names import SUMMARIES
from flowmbpo.errors import ConfigError, nearest
from flowmbpo_cli.output import only_document, people, print_document
from flowmbpo_cli.sources import complete_task

if TYPE_CHECKING:
    from flowmbpo.runs.diagnose import DiagnoseOutcome

ALL = "all"
UNHEALTHY = 3


def complete_name(incomplete: str) -> list[tuple[str, str]]:
    """Shell completion: the diagnostics and what each is for."""
    return [(name, summary) for name, summary in SUMMARIES.items() if name.startswith(incomplete)]


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
    json_: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Tell what a run's model, policy and gradients are worth, and what is broken. Exit code 3: unhealthy."""
    if name != ALL and name not in SUMMARIES:
        raise ConfigError(
            f"unknown diagnostic '{name}'.{nearest(name, (*SUMMARIES, ALL))} There are: {', '.join((*SUMMARIES, ALL))}"
        )
    from flowmbpo.diagnostics.effort import Effort
    from flowmbpo.runs import diagnose as runs

    if checkpoint is None:
        checkpoint = runs.newest_checkpoint()
        print(f"No checkpoint named: diagnosing {checkpoint}, the newest under outputs/.", file=sys.stderr)
    with only_document(json_):
        outcome = runs.diagnose(
            list(SUMMARIES) if name == ALL else [name],
            checkpoint.expanduser(),
            task=task,
            device=device,
            seed=seed,
            effort=Effort() if episodes is None else Effort(episodes=episodes),
        )
    if json_:
        print_document(outcome.to_dict())
    else:
        _print(outcome)
    if not outcome.healthy:
        raise typer.Exit(UNHEALTHY)


def _print(outcome: DiagnoseOutcome) -> None:
    from flowmbpo_cli.tables import print_table

    console = people(False)
    for diagnosis in outcome.diagnoses:
        print_table(console, diagnosis.name, ["figure", "value"], diagnosis.rows())
