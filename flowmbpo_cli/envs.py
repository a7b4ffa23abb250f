"""`flowmbpo envs list | show | check | bench | render`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flowmbpo.errors import ConfigError, EnvironmentUnavailableError
from flowmbpo_cli.output import only_document, people, print_document

if TYPE_CHECKING:
    from flowmbpo.config.task import TaskConfig


def _complete(incomplete: str) -> list[str]:
    from flowmbpo_cli.environments import complete_environment

    return complete_environment(incomplete)


_QUICK_STEPS = 60
_PICTURE_STEPS = {".png": 20, ".mp4": 150}  # by the file's suffix
_FRAMES_PER_SECOND = 30.0

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
    from flowmbpo_cli.environments import listing, print_listing

    document = listing(simulator)
    if json_:
        print_document(document)
    else:
        print_listing(people(json_), document)


@app.command()
def show(name: _Name, json_: _Json = False) -> None:
    """Show all that is known of a task, an alias or a task set."""
    from flowmbpo_cli.environments import description, print_description

    document = description(name)
    if json_:
        print_document(document)
    else:
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
    from flowmbpo.envs.resolve import resolve
    from flowmbpo_cli.environments import checks_line, checks_row, print_checks

    configs = _chosen(names or [], all_)
    with only_document(json_):
        from flowmbpo.envs.inspection.conformance import check_environment

        checked, left_out = [], []
        for place, config in enumerate(configs, start=1):
            label, begun = resolve(config).spec.label, time.perf_counter()
            try:
                results = check_environment(
                    config,
                    copies=copies,
                    steps=min(steps, _QUICK_STEPS) if quick else steps,
                    seed=seed,
                    workers=0 if quick else workers,
                    whole_episodes=not quick,
                    device=device,
                )
                checked.append(checks_row(label, results, time.perf_counter() - begun))
                line = checks_line(checked[-1])
            except EnvironmentUnavailableError as error:
                if len(configs) == 1:
                    raise
                left_out.append({"name": label, "reason": str(error)})
                line = "cannot run here"
            if len(configs) > 1:
                typer.echo(f"[{place}/{len(configs)}] {label}: {line}", err=True)
    ok = bool(checked) and all(row["ok"] for row in checked)
    if json_:
        print_document({"ok": ok, "environments": checked, "left_out": left_out})
    else:
        print_checks(people(json_), checked, left_out)
    raise typer.Exit(0 if ok else 1)


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
    from flowmbpo_cli.environments import find_environment

    config = find_environment(name)
    with only_document(json_):
        from flowmbpo.envs.inspection.bench import bench_environment

        result = bench_environment(config, copies=copies, workers=workers, seconds=seconds, seed=seed, device=device)
    document = asdict(result)
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
    from flowmbpo_cli.environments import find_environment

    config = find_environment(name)
    target = out.expanduser()
    _check_target(target)
    suffix = target.suffix.lower()
    count = _PICTURE_STEPS[suffix] if steps is None else steps
    with only_document(json_):
        from flowmbpo.envs.inspection.recording import film, walk
        from flowmbpo.envs.make import open_env
        from flowmbpo.envs.resolve import resolve

        spec = resolve(config).spec
        if len(spec.tasks) > 1:
            raise ConfigError(
                f"'{spec.label}' is a set of {len(spec.tasks)} tasks and a picture shows one; name a task of it, such "
                f"as '{spec.tasks[0].name}'."
            )
        with open_env(config, 1, 0) as env:
            if suffix == ".mp4":
                from flowmbpo.tracking.video import write_video

                write_video(film(env, count, seed, action), target, _FRAMES_PER_SECOND)
            else:
                for _ in walk(env, count, seed, action):
                    pass
                _write_picture(env.render(0), target)
    if json_:
        print_document({"environment": spec.label, "path": str(target), "steps": count, "seed": seed, "action": action})
        return
    typer.echo(f"Wrote {target}: {spec.label}, {count} steps of {action} actions.")


def _chosen(names: list[str], every: bool) -> list[TaskConfig]:
    """What to check: what was named, or every installed task."""
    if bool(names) == every:
        raise typer.BadParameter("name environments, or give --all for every one installed here.", param_hint="NAME")
    from flowmbpo.envs.tasks import all_tasks
    from flowmbpo_cli.environments import find_environment, task_row

    if names:
        return [find_environment(name) for name in names]
    return [find_environment(task.name) for task in all_tasks() if task_row(task)["runs_here"]]


def _check_target(out: Path) -> None:
    """Refuse a file that could not be written, before anything is drawn for it."""
    if out.suffix.lower() not in _PICTURE_STEPS:
        raise typer.BadParameter(f"'{out}' must end in .png (one picture) or .mp4 (a video).", param_hint="OUT")
    if not out.absolute().parent.is_dir():
        raise typer.BadParameter(f"the folder '{out.parent}' does not exist. Create it first.", param_hint="OUT")
    if out.is_dir():
        raise typer.BadParameter(f"'{out}' is a folder. Name a file.", param_hint="OUT")


def _write_picture(frame: Any, out: Path) -> None:
    from matplotlib.image import imsave

    from flowmbpo.files import StagedFile

    with StagedFile(out) as staged:
        imsave(staged, frame, format="png")  # type: ignore[arg-type]  # it writes, which is all that is asked
        staged.commit()
