"""`flowmbpo data collect | convert | inspect | verify | where`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flowmbpo_cli.evaluate import check_suffix
from flowmbpo_cli.output import Json, only_document, people, print_document
from flowmbpo_cli.sources import complete_task

if TYPE_CHECKING:
    from flowmbpo.config.task import TaskConfig

app = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
_Dataset = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a dataset.")]
_Dest = Annotated[Path, typer.Argument(metavar="DEST", help="The folder to write; begun ones are gone on with.")]
_REPORT_SECONDS = 10.0


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Record, convert, look at and check datasets."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def collect(
    dest: _Dest,
    set_: Annotated[str | None, typer.Option("--set", metavar="SET", help="Record a task set.")] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="TASK|FILE.yaml", help="Record one task, or a config's.", autocompletion=complete_task),
    ] = None,
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
    config = _task_config(set_, task)
    with only_document(json_):
        from flowmbpo.runs.collect import collect as record
        from flowmbpo.runs.collect import parse_policy

        def report(done: dict[str, Any]) -> None:
            figures = f"{done['episodes']} episodes, return {done['return_mean']:.4g}"
            _say(f"{done['task']}, {names[done['policy']]}: {figures}")

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
    if json_:
        print_document(outcome.to_dict())
        return
    from flowmbpo_cli.tables import print_table

    console = people(json_)
    columns = ["task", "policy", "episodes", "transitions", "return", "std", "success", "broken"]
    rows = [list({**row, "policy": names[row["policy"]]}.values()) for row in outcome.recorded]
    print_table(console, "recorded", columns, rows)
    console.print(f"Wrote {dest}: {outcome.episodes:,} episodes of {outcome.set}.", markup=False)


@app.command()
def convert(
    src: Annotated[Path, typer.Argument(metavar="SRC", help="A folder of chunk_*.pt or <task>.pt, or one file.")],
    dest: _Dest,
    format_: Annotated[
        Literal["auto", "tdmpc2", "mmbench", "pwm-dflex"], typer.Option("--format", help="How SRC was published.")
    ] = "auto",
    set_: Annotated[str | None, typer.Option("--set", metavar="SET", help="The task set that SRC must be of.")] = None,
    task: Annotated[str | None, typer.Option(help="The task of a single file.", autocompletion=complete_task)] = None,
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

    with only_document(json_):
        source = open_source(
            src.expanduser(), format_, set_name=set_, task=task, drop_padding=drop_padding, squash=squash
        )
        dataset = run(source, dest.expanduser(), limit=limit, report=_Progress())
    document = {
        "path": str(dataset.path),
        "format": source.format,
        "set": dataset.set_name,
        "episodes": dataset.episodes,
        "transitions": dataset.transitions,
        "fingerprint": dataset.fingerprint,
        "source": dataset.source,
    }
    if json_:
        print_document(document)
        return
    held = sum(record.episodes > 0 for record in dataset.tasks)
    people(json_).print(
        f"Wrote {dest}: {dataset.episodes:,} episodes of {held} of the {len(dataset.tasks)} tasks of "
        f"{dataset.set_name}. `flowmbpo data inspect {dest}` shows them.",
        markup=False,
        soft_wrap=True,
    )


@app.command()
def inspect(
    folder: _Dataset,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw returns, lengths and rewards.")] = None,
    json_: Json = False,
) -> None:
    """Show tasks, episodes, returns, ranges and sources of a dataset."""
    check_suffix("--plot", plot, ".png")
    from flowmbpo.data.dataset.reader import Dataset
    from flowmbpo_cli import datasets

    dataset = Dataset.open(folder.expanduser())
    tasks = datasets.inspect(dataset)
    if plot is not None:
        datasets.draw(dataset, tasks, f"{dataset.set_name}: {dataset.episodes:,} episodes ({folder})", plot)
    document = datasets.document(dataset, tasks)
    if json_:
        print_document(document)
        return
    _print_dataset(document)
    if plot is not None:
        people(json_).print(f"Wrote {plot}", markup=False)


@app.command()
def verify(folder: _Dataset, json_: Json = False) -> None:
    """Read every byte of a dataset and say what is damaged; exits with 1 if anything is."""
    from flowmbpo.data.dataset.verify import verify as check

    findings = check(folder.expanduser())
    if json_:
        print_document({"path": str(folder), "ok": not findings, "findings": [vars(finding) for finding in findings]})
    else:
        for finding in findings:
            typer.echo(str(finding))
        number = f"{len(findings)} finding{'s' if len(findings) > 1 else ''}" if findings else "intact"
        advice = dict.fromkeys(finding.advice for finding in findings if finding.advice)
        typer.echo(" ".join([f"{folder}: {number}.", *advice]))
    raise typer.Exit(1 if findings else 0)


@app.command()
def where(json_: Json = False) -> None:
    """Say where published datasets and checkpoints are to be had, and the command that reads each."""
    from flowmbpo_cli.datasets import PUBLISHED

    if json_:
        print_document({"published": [vars(entry) for entry in PUBLISHED]})
        return
    from flowmbpo_cli.tables import print_pairs

    console = people(json_)
    for entry in PUBLISHED:
        pairs = {key: value for key, value in vars(entry).items() if key != "name" and value}
        print_pairs(console, entry.name, pairs)


def _task_config(set_: str | None, task: str | None) -> TaskConfig:
    """What to record. Raises ConfigError, and BadParameter unless exactly one is named."""
    if (set_ is None) == (task is None):
        raise typer.BadParameter("name a task set (--set) or one task (--task), not both.", param_hint="--set/--task")
    from flowmbpo.config.task import TaskConfig
    from flowmbpo.envs.task_sets import task_set
    from flowmbpo_cli.environments import find_environment

    if set_ is not None:
        task_set(set_)  # refuses a name that is none
        return TaskConfig(name=None, set=set_)
    assert task is not None
    return find_environment(task)


def _print_dataset(document: dict[str, Any]) -> None:
    from flowmbpo_cli.datasets import source_rows
    from flowmbpo_cli.tables import print_pairs, print_table

    console = people(False)
    shown = ("set", "episodes", "transitions", "obs_dim", "action_dim", "files", "bytes", "fingerprint")
    print_pairs(console, document["path"], {key: document[key] for key in shown})
    rows = [
        [
            *(task[key] for key in ("name", "episodes", "transitions")),
            _span(task["length"]),
            task["return_mean"],
            *task["return_quantiles"],
            *(_span(task[key]) for key in ("reward", "obs", "action")),
            task["terminated"],
        ]
        for task in document["tasks"]
    ]
    returns = ["return", "least", "25%", "50%", "75%", "most"]
    columns = ["task", "episodes", "transitions", "length", *returns, "reward", "obs", "action", "terminated"]
    print_table(console, "tasks", columns, rows)
    if document["without_episodes"]:
        console.print(f"Without episodes: {', '.join(document['without_episodes'])}", markup=False)
    sources = source_rows(document["source"])
    if sources:
        print_table(console, "sources", ["source", "name", "details"], sources)


def _span(pair: list[float]) -> str:
    from flowmbpo_cli.tables import show

    low, high = (show(value) for value in pair)
    return low if low == high else f"{low} to {high}"


class _Progress:
    """A line now and then, and one for every file."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, path: Path, number: int, files: int, part: float) -> None:
        if part >= 1.0 or time.monotonic() - self._last > _REPORT_SECONDS:
            self._last = time.monotonic()
            _say(f"{path.name} ({number + 1} of {files}): {part:.0%}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
