"""`flowmbpo eval`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flowmbpo_cli.output import Json, only_document, people, print_document
from flowmbpo_cli.sources import complete_task


def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="A checkpoint (.pt), or a run directory: its latest.")
    ],
    episodes: Annotated[int | None, typer.Option(min=1, help="How many. [default: the config's]")] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=1_000_000_000, help="Seed of the episodes, never training's. [default: the run's]"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="One task of the set, or another task of the same dimensions.", autocompletion=complete_task),
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the networks compute.")] = "auto",
    video: Annotated[Path | None, typer.Option(metavar="FILE.mp4", help="Film real episodes.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the run's learning curve.")] = None,
    planner: Annotated[
        Literal["policy", "mppi"], typer.Option(help="What acts: the policy, or a search in the world model.")
    ] = "policy",
    planner_set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A setting of the planner, e.g. horizon=5. May be repeated."),
    ] = None,
    json_: Json = False,
) -> None:
    """Measure the real return of a trained policy, or of a planner in its world model."""
    from flowmbpo.presets.load import mppi_config

    if planner_set and planner == "policy":
        raise typer.BadParameter("sets a planner's options; add --planner mppi.", param_hint="--planner-set")
    settings = None if planner == "policy" else mppi_config(planner_set or ())
    if task is not None:
        from flowmbpo.envs.tasks import task_info

        task_info(task)
    check_suffix("--video", video, ".mp4")
    check_suffix("--plot", plot, ".png")
    from flowmbpo.checkpoints.load import resolve

    file = resolve(checkpoint.expanduser())
    from flowmbpo.runs.evaluate import evaluate_checkpoint

    with only_document(json_):
        outcome = evaluate_checkpoint(
            file,
            episodes=episodes,
            seed=seed,
            task=task,
            device=device,
            video=video,
            plot=plot,
            planner=settings,
        ).to_dict()
    if json_:
        print_document(outcome)
        return
    from flowmbpo_cli.tables import print_pairs, print_table

    console = people(json_)
    shown = {key: value for key, value in outcome.items() if key not in ("per_task", "tasks")}
    print_pairs(console, "evaluation", shown | _planner_lines(outcome["planner"]))
    if len(outcome["per_task"]) > 1:
        rows = [[task, *figures.values()] for task, figures in outcome["per_task"].items()]
        print_table(console, "per task", ["task", "episodes", "return", "success"], rows)
    for path in (video, plot):
        if path is not None:
            console.print(f"Wrote {path}", markup=False)


def _planner_lines(planner: Mapping[str, Any]) -> dict[str, str]:
    """What acted, and how often a planner found nothing finite, in words."""
    from flowmbpo.evaluation.results import planner_label

    lines = {"planner": planner_label(planner)}
    if "counts" in planner:
        lines["planned"] = ", ".join(f"{count} {name}" for name, count in planner["counts"].items())
    return lines


def check_suffix(flag: str, path: Path | None, suffix: str) -> None:
    """Refuse a file that could not be written, before minutes of episodes are run for it."""
    if path is None:
        return
    if path.suffix != suffix:
        raise typer.BadParameter(f"'{path}' must end in {suffix}.", param_hint=flag)
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"the folder '{path.parent}' does not exist. Create it first.", param_hint=flag)
