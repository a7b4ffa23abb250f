"""`flowmbpo eval`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flowmbpo_cli.output import Json, answer
from flowmbpo_cli.sources import check_target, task_option


def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="A checkpoint (.pt), or a run directory: its latest.")
    ],
    episodes: Annotated[int | None, typer.Option(min=1, help="How many. [default: the config's]")] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=1_000_000_000, help="Seed of the episodes, never training's. [default: the run's]"),
    ] = None,
    task: Annotated[str | None, task_option("One task of the set, or another task of the same dimensions.")] = None,
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
    check_target("--video", video, ".mp4")
    check_target("--plot", plot, ".png")
    from flowmbpo.checkpoints.load import resolve

    file = resolve(checkpoint.expanduser())
    from flowmbpo.runs.evaluate import evaluate_checkpoint

    outcome = evaluate_checkpoint(
        file, episodes=episodes, seed=seed, task=task, device=device, video=video, plot=plot, planner=settings
    )
    answer(outcome.to_dict(), json_, partial(_show, [path for path in (video, plot) if path is not None]))


def _show(written: list[Path], outcome: dict[str, Any]) -> None:
    from flowmbpo.evaluation.results import planner_label
    from flowmbpo_cli.tables import print_pairs, print_table

    planner = outcome["planner"]
    shown = {key: value for key, value in outcome.items() if key not in ("per_task", "tasks")}
    shown["planner"] = planner_label(planner)
    if "counts" in planner:
        shown["planned"] = ", ".join(f"{count} {name}" for name, count in planner["counts"].items())
    print_pairs("evaluation", shown)
    if len(outcome["per_task"]) > 1:
        rows = [[task, *figures.values()] for task, figures in outcome["per_task"].items()]
        print_table("per task", ["task", "episodes", "return", "success"], rows)
    for path in written:
        typer.echo(f"Wrote {path}")
