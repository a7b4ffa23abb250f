"""`flowmbpo envs list | show | check | bench | render`."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from flowmbpo.errors import ConfigError, EnvironmentUnavailableError
from flowmbpo_cli.output import Json, answer, command_group
from flowmbpo_cli.sources import check_target, complete_environment, find_environment

_QUICK_STEPS = 60
_PICTURE_STEPS = {".png": 20, ".mp4": 150}  # by the file's suffix
_FRAMES_PER_SECOND = 30.0

app = command_group("List, check, time and draw the environments.")
_WHAT = "A task, an alias, a task set, or a .yaml file whose `task` is meant."
_Name = Annotated[str, typer.Argument(metavar="NAME", help=_WHAT, autocompletion=complete_environment)]
_Seed = Annotated[int, typer.Option(min=0, help="Seed of the episodes and of random actions.")]
_Device = Annotated[Literal["cpu", "cuda"], typer.Option(help="Where a simulator that can (dflex, rewarped) computes.")]


@app.command("list")
def list_(
    simulator: Annotated[str | None, typer.Option(metavar="NAME", help="Only the tasks of this simulator.")] = None,
    json_: Json = False,
) -> None:
    """List every task, alias and task set, and what to install for those that cannot run here."""
    from flowmbpo_cli.environments import listing, show_listing

    answer(listing(simulator), json_, show_listing)


@app.command()
def show(name: _Name, json_: Json = False) -> None:
    """Show all that is known of a task, an alias or a task set."""
    from flowmbpo_cli.environments import description, show_description

    answer(description(name), json_, show_description)


@app.command()
def check(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help=_WHAT, autocompletion=complete_environment)
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every task that is installed here.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="60 steps, no worker processes, no time limits.")] = False,
    steps: Annotated[int, typer.Option(min=2, help="Agent steps of every comparison.")] = 500,
    copies: Annotated[int, typer.Option(min=2, help="Copies; a set takes as many as it needs.")] = 2,
    workers: Annotated[int, typer.Option(min=0, help="Processes or threads that step the repetition.")] = 1,
    seed: _Seed = 0,
    device: _Device = "cpu",
    json_: Json = False,
) -> None:
    """Hold environments against the contract; exits with 1 if one breaks it, or if none can run here."""
    if bool(names) == all_:
        raise typer.BadParameter("name environments, or give --all for every one installed here.", param_hint="NAME")
    from flowmbpo.envs.tasks import all_tasks
    from flowmbpo_cli.environments import checks_row, show_checks, task_row

    chosen = names or [task.name for task in all_tasks() if task_row(task)["runs_here"]]
    configs = [find_environment(name) for name in chosen]
    from flowmbpo.envs.inspection.conformance import check_environment
    from flowmbpo.envs.resolve import resolve

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
            failed = ", ".join(result.name for result in results if result.verdict == "failed")
            line = f"{f'FAILED: {failed}' if failed else 'passed'} ({checked[-1]['cpu_s']:.1f} CPU-s)"
        except EnvironmentUnavailableError as error:
            if len(configs) == 1:
                raise
            left_out.append({"name": label, "reason": str(error)})
            line = "cannot run here"
        if len(configs) > 1:
            typer.echo(f"[{place}/{len(configs)}] {label}: {line}", err=True)
    ok = bool(checked) and all(row["ok"] for row in checked)
    answer({"ok": ok, "environments": checked, "left_out": left_out}, json_, show_checks)
    raise typer.Exit(0 if ok else 1)


@app.command()
def bench(
    name: _Name,
    copies: Annotated[int | None, typer.Option(min=1, help="How many. [default: 128, or the file's]")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes or threads. [default: one per core]")] = None,
    seconds: Annotated[float, typer.Option(help="How long to step, in wall-clock seconds.")] = 5.0,
    seed: _Seed = 0,
    device: _Device = "cpu",
    json_: Json = False,
) -> None:
    """Measure agent steps per second and per CPU-second, construction and reset."""
    config = find_environment(name)
    from flowmbpo.envs.inspection.bench import bench_environment

    result = bench_environment(config, copies=copies, workers=workers, seconds=seconds, seed=seed, device=device)
    from flowmbpo_cli.tables import print_pairs

    answer(vars(result), json_, partial(print_pairs, "bench"))


@app.command()
def render(
    name: _Name,
    out: Annotated[Path, typer.Argument(metavar="OUT.png|OUT.mp4", help="The picture or the video.")],
    steps: Annotated[
        int | None, typer.Option(min=0, help="Agent steps, before the picture or in the video. [default: 20, 150]")
    ] = None,
    seed: _Seed = 0,
    action: Annotated[Literal["zero", "random"], typer.Option(help="What moves it.")] = "random",
    json_: Json = False,
) -> None:
    """Draw a task into a file."""
    config, target = find_environment(name), out.expanduser()
    check_target("OUT", target, *_PICTURE_STEPS, said=".png (one picture) or .mp4 (a video)")
    suffix = target.suffix.lower()
    count = _PICTURE_STEPS[suffix] if steps is None else steps
    from flowmbpo.envs.inspection.recording import walk
    from flowmbpo.envs.make import open_env
    from flowmbpo.envs.resolve import resolve
    from flowmbpo.files import StagedFile

    spec = resolve(config).spec
    if len(spec.tasks) > 1:
        raise ConfigError(
            f"'{spec.label}' is a set of {len(spec.tasks)} tasks and a picture shows one; name a task of it, such "
            f"as '{spec.tasks[0].name}'."
        )
    with open_env(config, 1, 0) as env:
        if suffix == ".mp4":
            from flowmbpo.tracking.video import write_video

            write_video((env.render(0) for _ in walk(env, count, seed, action)), target, _FRAMES_PER_SECOND)
        else:
            from matplotlib.image import imsave

            for _ in walk(env, count, seed, action):
                pass
            with StagedFile(target) as staged:
                imsave(staged, env.render(0), format="png")  # type: ignore[arg-type]  # it writes: all that is asked
                staged.commit()
    document = {"environment": spec.label, "path": str(target), "steps": count, "seed": seed, "action": action}
    answer(document, json_, f"Wrote {target}: {spec.label}, {count} steps of {action} actions.")
