"""`flowmbpo data collect | convert | inspect | verify | where`."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flowmbpo_cli.output import Json, answer, command_group
from flowmbpo_cli.sources import check_target, find_environment, task_option

app = command_group("Record, convert, look at and check datasets.")
_Dataset = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a dataset.")]
_Dest = Annotated[Path, typer.Argument(metavar="DEST", help="The folder to write; begun ones are gone on with.")]
_REPORT_SECONDS = 10.0


@app.command()
def collect(
    dest: _Dest,
    set_: Annotated[str | None, typer.Option("--set", metavar="SET", help="Record a task set.")] = None,
    task: Annotated[str | None, task_option("Record one task, or a config's.", metavar="TASK|FILE.yaml")] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="random|noise|CKPT[:TASK][~NOISE]",
            help="Who acts, with @N for N episodes; repeatable. [default: random]",
        ),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Of every task by every policy.")] = 10,
    noise: Annotated[float, typer.Option(min=0.0, help="Gaussian noise on a checkpoint's actions.")] = 0.0,
    sample: Annotated[bool, typer.Option("--sample", help="Draw a checkpoint's actions from its policy.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of episodes, noise and samples.")] = 0,
    num_envs: Annotated[int, typer.Option(min=1, help="Copies side by side; part of what comes out.")] = 16,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes. [default: one per core]")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the networks compute.")] = "cpu",
    json_: Json = False,
) -> None:
    """Record whole episodes of real environments; an interrupted command is repeated to go on."""
    name = set_ if task is None else task
    if name is None or (set_ is not None and task is not None):
        raise typer.BadParameter("name a task set (--set) or one task (--task), not both.", param_hint="--set/--task")
    from flowmbpo.envs.task_sets import task_set

    if set_ is not None:
        task_set(set_)  # refuses a name that is none
    config = find_environment(name)
    from flowmbpo.runs.collect import collect as record
    from flowmbpo.runs.collect import parse_policy

    def report(done: dict[str, Any]) -> None:
        figures = f"{done['episodes']} episodes, return {done['return_mean']:.4g}"
        typer.echo(f"{done['task']}, {names[done['policy']]}: {figures}", err=True)

    requests = [parse_policy(text) for text in policy or ["random"]]
    names = [request.name(noise) for request in requests]
    outcome = record(
        dest.expanduser(),
        config,
        requests,
        episodes=episodes,
        noise=noise,
        sample=sample,
        seed=seed,
        num_envs=num_envs,
        workers=workers,
        device=device,
        report=report,
    )
    answer(outcome.to_dict(), json_, partial(_show_recorded, dest, names))


def _show_recorded(dest: Path, names: list[str], outcome: dict[str, Any]) -> None:
    from flowmbpo_cli.tables import print_table

    columns = ["task", "policy", "episodes", "transitions", "return", "std", "success", "broken"]
    rows = [list({**row, "policy": names[row["policy"]]}.values()) for row in outcome["recorded"]]
    print_table("recorded", columns, rows)
    typer.echo(f"Wrote {dest}: {outcome['episodes']:,} episodes of {outcome['set']}.")


@app.command()
def convert(
    src: Annotated[Path, typer.Argument(metavar="SRC", help="A folder of chunk_*.pt or <task>.pt, or one file.")],
    dest: _Dest,
    format_: Annotated[
        Literal["auto", "tdmpc2", "mmbench", "pwm-dflex"], typer.Option("--format", help="How SRC was published.")
    ] = "auto",
    set_: Annotated[str | None, typer.Option("--set", metavar="SET", help="The task set that SRC must be of.")] = None,
    task: Annotated[str | None, task_option("The task of a single file.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit-episodes-per-task", min=1, help="Keep so many, spread evenly. [default: all]")
    ] = None,
    drop_padding: Annotated[
        bool, typer.Option("--drop-padding", help="Cut padding off even where it is not zero.")
    ] = False,
    squash: Annotated[
        Literal["auto", "tanh", "none"], typer.Option(help="pwm-dflex: what its actions need; auto looks at them.")
    ] = "auto",
    json_: Json = False,
) -> None:
    """Convert published data; SRC is only read, and an interrupted command is repeated to go on."""
    from flowmbpo.data.convert.conversion import convert as run
    from flowmbpo.data.convert.detection import open_source

    said = time.monotonic()

    def report(path: Path, number: int, files: int, part: float) -> None:
        nonlocal said
        if part >= 1.0 or time.monotonic() - said > _REPORT_SECONDS:  # a line now and then, and one for every file
            said = time.monotonic()
            typer.echo(f"{path.name} ({number + 1} of {files}): {part:.0%}", err=True)

    source = open_source(src.expanduser(), format_, set_name=set_, task=task, drop_padding=drop_padding, squash=squash)
    dataset = run(source, dest.expanduser(), limit=limit, report=report)
    keys = ("path", "set_name", "episodes", "transitions", "fingerprint", "source")
    document = {key.removesuffix("_name"): getattr(dataset, key) for key in keys} | {"format": source.format}
    held = f"{sum(record.episodes > 0 for record in dataset.tasks)} of the {len(dataset.tasks)} tasks"
    line = f"Wrote {dest}: {dataset.episodes:,} episodes of {held} of {dataset.set_name}."
    answer(document, json_, f"{line} `flowmbpo data inspect {dest}` shows them.")


@app.command()
def inspect(
    folder: _Dataset,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw returns, lengths and rewards.")] = None,
    json_: Json = False,
) -> None:
    """Show tasks, episodes, returns, ranges and sources of a dataset."""
    check_target("--plot", plot, ".png")
    from flowmbpo.data.dataset.reader import Dataset
    from flowmbpo_cli import datasets

    dataset = Dataset.open(folder.expanduser())
    document = datasets.inspect(dataset)
    if plot is not None:
        title = f"{dataset.set_name}: {dataset.episodes:,} episodes ({folder})"
        datasets.draw(dataset, document["tasks"], title, plot)
    answer(document, json_, datasets.show_dataset)
    if plot is not None and not json_:
        typer.echo(f"Wrote {plot}")


@app.command()
def verify(folder: _Dataset, json_: Json = False) -> None:
    """Read every byte of a dataset and say what is damaged; exits with 1 if anything is."""
    from flowmbpo.data.dataset.verify import verify as check

    findings = check(folder.expanduser())
    number = f"{len(findings)} finding{'s' if len(findings) > 1 else ''}" if findings else "intact"
    advice = dict.fromkeys(finding.advice for finding in findings if finding.advice)
    lines = [*map(str, findings), " ".join([f"{folder}: {number}.", *advice])]
    document = {"path": str(folder), "ok": not findings, "findings": [vars(finding) for finding in findings]}
    answer(document, json_, "\n".join(lines))
    raise typer.Exit(1 if findings else 0)


@app.command()
def where(json_: Json = False) -> None:
    """Say where published datasets and checkpoints are to be had, and the command that reads each."""
    from flowmbpo_cli.datasets import PUBLISHED, show_published

    answer({"published": PUBLISHED}, json_, show_published)
