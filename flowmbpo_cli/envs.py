"""`flowmbpo envs list | show | check | bench | render`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flowmbpo_cli.output import only_document, people, print_document

if TYPE_CHECKING:
    from flowmbpo.config.task import TaskConfig


def _complete(incomplete: str) -> list[str]:
    from flowmbpo_cli.environments.catalogue import complete_environment

    return complete_environment(incomplete)


app = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
_WHAT = "A task, an alias, a task set, or a .yaml file whose `task` is meant."
_Name = Annotated[str, typer.Argument(metavar="NAME", help=_WHAT, autocompletion=_complete)]
_Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
_Seed = Annotated[int, typer.Option(min=0, help="Seed of the episodes and of random actions.")]
_Device = Annotated[Literal["cpu", "cuda"], typer.Option(help="Where a simulator that can (dflex, rewarped) computes.")]
_Workers = Annotated[int | None, typer.Option(min=0, help="Processes or threads. [default: one per core]")]


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """List, check, time and draw the environments."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list")
def list_(
    simulator: Annotated[str | None, typer.Option(metavar="NAME", help="Only the tasks of this simulator.")] = None,
    json_: _Json = False,
) -> None:
    """List every task, alias and task set, and what to install for those that cannot run here."""
    from flowmbpo_cli.environments.catalogue import listing

    document = listing(simulator)
    if json_:
        print_document(document)
        return
    from flowmbpo_cli.environments.printing import print_listing

    print_listing(people(json_), document)


@app.command()
def show(name: _Name, json_: _Json = False) -> None:
    """Show all that is known of a task, an alias or a task set."""
    from flowmbpo_cli.environments.catalogue import description

    document = description(name)
    if json_:
        print_document(document)
        return
    from flowmbpo_cli.environments.printing import print_description

    print_description(people(json_), document)


@app.command()
def check(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help=_WHAT, autocompletion=_complete)
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every task that is installed here.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="60 steps, no worker processes, no time limits.")] = False,
    steps: Annotated[int, typer.Option(min=2, help="Agent steps of every comparison.")] = 500,
    copies: Annotated[int, typer.Option(min=2, help="Copies; a set takes as many as it needs.")] = 2,
    workers: Annotated[int, typer.Option(min=0, help="Processes or threads that step the repetition.")] = 1,
    seed: _Seed = 0,
    device: _Device = "cpu",
    json_: _Json = False,
) -> None:
    """Hold environments against the contract; exits with 1 if one breaks it, or if none can run here."""
    configs = _chosen(names or [], all_)
    with only_document(json_):
        from flowmbpo_cli.environments.inspection import inspect

        found = inspect(
            configs,
            _report if len(configs) > 1 else lambda line: None,
            copies=copies,
            steps=steps,
            workers=workers,
            quick=quick,
            seed=seed,
            device=device,
        )
    if json_:
        print_document(found.to_dict())
    else:
        from flowmbpo_cli.environments.printing import print_checks

        print_checks(people(json_), found.environments, found.left_out)
    raise typer.Exit(0 if found.ok else 1)


@app.command()
def bench(
    name: _Name,
    copies: Annotated[int | None, typer.Option(min=1, help="How many. [default: 128, or the file's]")] = None,
    workers: _Workers = None,
    seconds: Annotated[float, typer.Option(help="How long to step, in wall-clock seconds.")] = 5.0,
    seed: _Seed = 0,
    device: _Device = "cpu",
    json_: _Json = False,
) -> None:
    """Measure agent steps per second and per CPU-second, construction and reset."""
    from flowmbpo_cli.environments.catalogue import find_environment

    config = find_environment(name)
    with only_document(json_):
        from flowmbpo.envs.inspection.bench import bench_environment

        document = bench_environment(
            config, copies=copies, workers=workers, seconds=seconds, seed=seed, device=device
        ).to_dict()
    if json_:
        print_document(document)
        return
    from flowmbpo_cli.tables import print_pairs

    print_pairs(people(json_), "bench", document)


@app.command()
def render(
    name: _Name,
    out: Annotated[Path, typer.Argument(metavar="OUT.png|OUT.mp4", help="The picture or the video.")],
    steps: Annotated[
        int | None, typer.Option(min=0, help="Agent steps, before the picture or in the video. [default: 20, 150]")
    ] = None,
    seed: _Seed = 0,
    action: Annotated[Literal["zero", "random"], typer.Option(help="What moves it.")] = "random",
    json_: _Json = False,
) -> None:
    """Draw a task into a file."""
    from flowmbpo_cli.environments.catalogue import find_environment
    from flowmbpo_cli.environments.pictures import check_target, draw

    config = find_environment(name)
    target = out.expanduser()
    check_target(target)
    with only_document(json_):
        document = draw(config, target, steps=steps, seed=seed, motion=action)
    if json_:
        print_document(document)
        return
    typer.echo(f"Wrote {target}: {document['environment']}, {document['steps']} steps of {action} actions.")


def _chosen(names: list[str], every: bool) -> list[TaskConfig]:
    """What to check: what was named, or every installed task."""
    if bool(names) == every:
        raise typer.BadParameter("name environments, or give --all for every one installed here.", param_hint="NAME")
    from flowmbpo.spec import EnvSpec
    from flowmbpo_cli.environments.catalogue import all_tasks, find_environment, missing_simulators

    if names:
        return [find_environment(name) for name in names]
    return [find_environment(task.name) for task in all_tasks() if not missing_simulators(EnvSpec((task,)))]


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
